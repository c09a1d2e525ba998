"""Eviction: which cached content goes first.

``Evictor`` in evictor.py is the door, and the order that the block pool asks. Orders, one a file,
look only at what was told up to now; none knows the future, and none performs anything.
"""
