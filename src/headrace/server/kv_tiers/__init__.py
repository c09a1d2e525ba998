"""Lower tiers of the KV cache: host memory, disk, and the thread that moves blocks.

What goes where and when is core/kvcache/tiers.py's.
"""
