"""ReuseOdds: how likely content is to come back, learned from what came back and what did not.

For each kind of content, survival analysis over ages (in buckets that grow by the square root of
two): how many runs came back at an age, of how many that were watched at that age. Evicted runs
are watched on, so what is learned does not depend on what was kept. With few observations a kind
is taken to be like its family, but more or less likely as a whole (proportional hazards: Cox,
1972), and a family like content whose odds fall with its age, which is what LRU assumes.

What a run is worth at an age is the best ratio, over all times one might go on keeping it, of
the chance that it comes back to the room-seconds spent waiting: Gittins' index (1979). With
hits over lifetimes in place of that ratio this is the hit density of Beckmann et al., "LHD"
(NSDI 2018). Wang et al., "KVCache Cache in the Wild" (USENIX ATC 2025), tell how different the
reuse of kinds of requests is.
"""

from __future__ import annotations

from collections import OrderedDict
from math import log2
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from headrace.core.kvcache.eviction.marks import Kind
    from headrace.types import Seconds

    Floats = NDArray[np.float64]

NUM_BUCKETS = 26
"""Ages up to 2**13 s, more than two hours."""
MAX_WATCHED = 8192
"""Runs whose return is awaited, evicted ones included: a megabyte or two."""
FIT_EVERY = 200
"""Runs between two fits."""
KEPT_PER_FIT = 0.995
"""Of old observations: half of them count after 28,000 runs."""

_PRIOR_HAZARD, _PRIOR_WEIGHT = 0.1, 50.0  # per bucket; in observations
_RATIO_WEIGHT = 20.0  # expected returns before a kind differs from its family by half
_KIND_WEIGHT = 20.0  # observations before a kind has a course of its own by half
_MAX_HAZARD = 0.9
_EDGES = 2.0 ** (np.arange(NUM_BUCKETS + 1) / 2) - 1  # seconds
_WIDTHS = np.diff(_EDGES)


class ReuseOdds:
    """What is worth keeping. O(1) per run, but for a fit every ``FIT_EVERY`` of them."""

    def __init__(self) -> None:
        self._watched: OrderedDict[bytes, tuple[Kind, Seconds]] = OrderedDict()
        self._rows: dict[Kind, int] = {}
        self._returned: Floats = np.zeros((0, NUM_BUCKETS))
        self._given_up: Floats = np.zeros((0, NUM_BUCKETS))
        self._worth: list[list[float]] = []
        self._num_since_fit = 0

    def watch(self, digest: bytes, kind: Kind, since: Seconds, now: Seconds) -> None:
        """Await the return of a run that left use at ``since``, known by a digest of its own."""
        self._num_since_fit += 1
        self._watched[digest] = (kind, since)
        if len(self._watched) > MAX_WATCHED:
            _, (old, long_since) = self._watched.popitem(last=False)
            row = self._row(old)
            self._given_up[row, _bucket(now - long_since)] += 1

    def came_back(self, digests: Iterable[bytes], now: Seconds) -> None:
        """Content is used again, whether it was still there or not."""
        watched = self._watched
        for digest in [digest for digest in digests if digest in watched]:
            kind, since = watched.pop(digest)
            row = self._row(kind)
            self._returned[row, _bucket(now - since)] += 1

    def worth(self, kind: Kind, age: Seconds) -> float:
        """Return what keeping a run is worth: returns per second of room."""
        row = self._rows.get(kind)
        if row is None or row >= len(self._worth):
            return _UNKNOWN[_bucket(age)]
        return self._worth[row][_bucket(age)]

    def refresh(self, now: Seconds) -> bool:
        """Fit anew if there is enough news; say whether it was done."""
        if self._num_since_fit < FIT_EVERY:
            return False
        self._num_since_fit = 0
        for kind, _ in self._watched.values():
            self._row(kind)
        self._worth = self._fit(now).tolist()
        self._returned *= KEPT_PER_FIT
        self._given_up *= KEPT_PER_FIT
        return True

    def _fit(self, now: Seconds) -> Floats:
        waiting = self._waiting(now)
        left = self._returned + self._given_up + waiting
        later = np.cumsum(left[:, ::-1], axis=1)[:, ::-1] - left
        at_risk = later + self._returned + (self._given_up + waiting) / 2
        hazard = np.empty_like(at_risk)
        for family in {kind.family for kind in self._rows}:
            rows = [row for kind, row in self._rows.items() if kind.family == family]
            hazard[rows] = _hazards(self._returned[rows], at_risk[rows])
        return _index(hazard)

    def _waiting(self, now: Seconds) -> Floats:
        """Count the watched runs by kind and age."""
        rows = np.fromiter((self._rows[kind] for kind, _ in self._watched.values()), np.int64)
        since = np.fromiter((since for _, since in self._watched.values()), np.float64)
        buckets = np.searchsorted(_EDGES, np.maximum(now - since, 0.0), side="right") - 1
        cells = rows * NUM_BUCKETS + np.minimum(buckets, NUM_BUCKETS - 1)
        counts = np.bincount(cells, minlength=len(self._rows) * NUM_BUCKETS)
        return counts.reshape(-1, NUM_BUCKETS).astype(np.float64)

    def _row(self, kind: Kind) -> int:
        row = self._rows.get(kind)
        if row is None:
            row = self._rows[kind] = len(self._rows)
            empty = np.zeros((1, NUM_BUCKETS))
            self._returned = np.concatenate((self._returned, empty))
            self._given_up = np.concatenate((self._given_up, empty))
        return row


def _hazards(returned: Floats, at_risk: Floats) -> Floats:
    """Return for kinds of one family the chance of returning within each bucket."""
    together = returned.sum(axis=0) + _PRIOR_WEIGHT * _PRIOR_HAZARD
    base = together / (at_risk.sum(axis=0) + _PRIOR_WEIGHT)
    expected = at_risk @ base
    ratio = (returned.sum(axis=1) + _RATIO_WEIGHT) / (expected + _RATIO_WEIGHT)
    prior = np.minimum(ratio[:, None] * base[None, :], _MAX_HAZARD)
    own: Floats = (returned + _KIND_WEIGHT * prior) / (at_risk + _KIND_WEIGHT)
    return own.clip(max=_MAX_HAZARD)


def _index(hazard: Floats) -> Floats:
    """Return Gittins' index at the beginning of each bucket."""
    index = np.zeros_like(hazard)
    for start in range(NUM_BUCKETS):
        alive = np.cumprod(1 - hazard[:, start:], axis=1)
        before = np.concatenate((np.ones((len(hazard), 1)), alive[:, :-1]), axis=1)
        room = np.cumsum((before + alive) / 2 * _WIDTHS[start:], axis=1)
        index[:, start] = ((1 - alive) / room).max(axis=1)
    return index


def _bucket(age: Seconds) -> int:
    return min(int(2 * log2(1 + age)), NUM_BUCKETS - 1) if age > 0 else 0


_UNKNOWN: list[float] = _index(np.full((1, NUM_BUCKETS), _PRIOR_HAZARD))[0].tolist()
