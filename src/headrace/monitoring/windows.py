"""What happened in the last minute: percentiles and rates in bounded memory.

A window is a ring of slices of SLICE_SECONDS. It covers the slice under way and the full ones
before it, so between WINDOW_SECONDS - SLICE_SECONDS and WINDOW_SECONDS. Values are counted in
logarithmic buckets: a percentile is off by less than 2 % of its value (the bucket's middle is
told, and a bucket's bounds are 4 % apart), for values of 0.1 ms to an hour.
"""

from __future__ import annotations

from collections import Counter, deque
from math import ceil, floor, log
from typing import TYPE_CHECKING, Final

from headrace.monitoring.shapes import Percentiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headrace.types import Seconds

WINDOW_SECONDS: Final = 60.0
SLICE_SECONDS: Final = 5.0
_NUM_SLICES: Final = int(WINDOW_SECONDS / SLICE_SECONDS)

_SMALLEST: Final = 1e-4  # seconds
_LARGEST: Final = 3600.0
_GROWTH: Final = 1.04  # a bucket's upper bound over its lower one
_PER_LOG: Final = 1 / log(_GROWTH)


class Window:
    """Counts by key, of the last minute. Times may not go back."""

    def __init__(self) -> None:
        self._slices: deque[tuple[int, Counter[int]]] = deque(maxlen=_NUM_SLICES)
        self._begun_at: Seconds | None = None

    def add(self, key: int, number: int, now: Seconds) -> None:
        """Count something."""
        self.open(now)[key] += number

    def open(self, now: Seconds) -> Counter[int]:
        """Return the counts of this moment, to be added to at once."""
        slices = self._slices
        place = int(now // SLICE_SECONDS)
        if not slices or slices[-1][0] != place:
            if self._begun_at is None:
                self._begun_at = now
            slices.append((place, Counter()))
        return slices[-1][1]

    def counts(self, now: Seconds) -> Counter[int]:
        """Return the sums over the window."""
        oldest = int(now // SLICE_SECONDS) - _NUM_SLICES
        total: Counter[int] = Counter()
        for place, counts in self._slices:
            if place > oldest:
                total.update(counts)
        return total

    def seconds(self, now: Seconds) -> Seconds:
        """Return how much time the window covers: less than its length after a start."""
        first = (floor(now / SLICE_SECONDS) - _NUM_SLICES + 1) * SLICE_SECONDS
        begun = now if self._begun_at is None else self._begun_at
        return max(now - max(first, begun), 1.0)


class Spread:
    """How a time is distributed over the last minute."""

    def __init__(self) -> None:
        self._window = Window()

    def observe(self, value: Seconds, now: Seconds, times: int = 1) -> None:
        """Count a value ``times`` times."""
        bounded = min(max(value, _SMALLEST), _LARGEST)
        self._window.add(int(log(bounded / _SMALLEST) * _PER_LOG), times, now)

    def percentiles(self, now: Seconds) -> Percentiles:
        """Return the middles of the buckets where they lie; None without a value."""
        return percentiles_of(self._window.counts(now))

    def counts(self, now: Seconds) -> Counter[int]:
        """Return how many values are in which bucket."""
        return self._window.counts(now)

    def count(self, now: Seconds) -> int:
        """Return how many values the window holds."""
        return self._window.counts(now).total()


def percentiles_of(counts: Mapping[int, int]) -> Percentiles:
    """Return those of a Spread's ``counts``, or of several added up."""
    ordered = sorted(counts.items())
    p50, p95, p99 = (_value_at(ordered, share) for share in (0.5, 0.95, 0.99))
    return Percentiles(p50=p50, p95=p95, p99=p99)


def _value_at(counts: Iterable[tuple[int, int]], share: float) -> Seconds | None:
    """Return the value of the smallest bucket that has ``share`` of all at or below it."""
    counts = list(counts)
    rank = ceil(share * sum(number for _, number in counts))
    for bucket, number in counts:
        rank -= number
        if rank <= 0:
            return float(_SMALLEST * _GROWTH ** (bucket + 0.5))
    return None
