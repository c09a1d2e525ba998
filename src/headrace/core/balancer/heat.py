"""Heat: how often a prefix came lately. Its clock is the number of requests placed."""

from __future__ import annotations

from math import exp2

HALF_LIFE = 256  # requests of any kind, until one that came counts half
MAX_PREFIXES = 4096
"""Counted; the one that did not come for longest goes first."""


class Heat:
    """Bounded by ``max_prefixes``."""

    def __init__(self, *, max_prefixes: int = MAX_PREFIXES) -> None:
        self._max_prefixes = max_prefixes
        self._counts: dict[bytes, tuple[float, int]] = {}  # the last that came comes last
        self._now = 0

    def __len__(self) -> int:
        """Prefixes counted."""
        return len(self._counts)

    def note(self, prefix: bytes) -> float:
        """Count a request that begins so; return how many came lately, this one included.

        Of prefixes that go on coming at the same rate, that many will come while those that came
        until now are forgotten by half, about.
        """
        self._now += 1
        count, then = self._counts.pop(prefix, (0.0, self._now))
        count = 1.0 + count * exp2((then - self._now) / HALF_LIFE)
        self._counts[prefix] = (count, self._now)
        if len(self._counts) > self._max_prefixes:
            del self._counts[next(iter(self._counts))]
        return count
