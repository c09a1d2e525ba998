"""Blocks between engines: one lends what its device holds, another fetches it.

Who fetches what from whom is decided by core/router/sources.py and core/kvcache/lower_tiers.py.
"""
