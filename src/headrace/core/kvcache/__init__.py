"""KV Cache Manager: which block holds what, who uses it, and which content goes first.

``KVCache`` in cache.py is the door; the other modules are its parts.
"""
