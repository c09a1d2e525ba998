"""Regrets: content that was evicted and then computed again."""

from __future__ import annotations

from collections import OrderedDict

MAX_LOST = 65_536
"""Digests of evicted content that are remembered, the latest: a few megabytes."""


class Regrets:
    """Counts what is lost, and what of it is wanted again while it is remembered."""

    def __init__(self) -> None:
        self._lost: OrderedDict[bytes, None] = OrderedDict()
        self.num_lost = 0
        self.num_regretted = 0

    def lost(self, digest: bytes) -> None:
        """Content was evicted."""
        self.num_lost += 1
        self._lost[digest] = None
        if len(self._lost) > MAX_LOST:
            self._lost.popitem(last=False)

    def computed(self, digest: bytes) -> None:
        """Content was computed."""
        if digest in self._lost:
            del self._lost[digest]
            self.num_regretted += 1
