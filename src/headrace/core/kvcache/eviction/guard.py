"""Guard: whether learned odds do better than plain LRU, found out on a sample beside the cache.

Two shadow caches hold names of content only: of every n-th digest, in an n-th of the blocks.
One evicts by age, the other by odds, both see every use. The odds are followed in earnest only
while their shadow has had clearly more hits of late; otherwise it is LRU, to the block.
(Qureshi et al., "Adaptive insertion policies", ISCA 2007, let sampled sets duel likewise.)
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.kvcache.eviction.runs import RunQueues

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.kvcache.eviction.marks import Kind
    from headrace.core.kvcache.eviction.odds import ReuseOdds
    from headrace.core.kvcache.eviction.runs import Run
    from headrace.types import Seconds

MAX_SHADOW = 8192
"""Blocks of a shadow at most: some megabytes for both. With a quarter of them, chance alone made
LRU look 2 % worse than it was on a public trace."""
HALF_LIFE = 12_000
"""Sampled uses after which a hit counts half."""
BEGIN, END = 0.05, 0.02
"""Odds are followed from so many hits more than LRU, and no longer below: a share of the hits of
LRU or of its misses, whichever are fewer."""
MIN_HITS = 64.0
"""Hits of LRU and odds apart before they are compared."""

SLICE = 128
"""Uses and releases that shadows live through with one event: long prompts cost no step more."""
MAX_BACKLOG = 65_536
"""Of these that may wait."""

_AGE_EVERY = 256
_KEPT = 0.5 ** (_AGE_EVERY / HALF_LIFE)


class _Release(NamedTuple):
    kind: Kind
    visit: int
    at: Seconds


class _Told(NamedTuple):
    """Content that was used, or released; ``digests`` in turn, the last first."""

    digests: list[bytes]
    release: _Release | None


class Guard:
    """Says whether to follow the odds."""

    def __init__(self, num_blocks: int, odds: ReuseOdds) -> None:
        self._one_in = -(-num_blocks // MAX_SHADOW)
        capacity = num_blocks // self._one_in
        self._by_age = _Shadow(capacity, None)
        self._by_odds = _Shadow(capacity, odds)
        self._backlog: deque[_Told] = deque()
        self._num_told = 0  # digests in it
        self._num_uses = 0
        self._num_recent = 0.0  # the same, old ones counting less
        self.follows_odds = False

    def used(self, digests: Sequence[bytes]) -> None:
        """Content was found or computed."""
        self._tell(digests, None)

    def released(self, digests: Sequence[bytes], kind: Kind, visit: int, now: Seconds) -> None:
        """Content is in use no more."""
        self._tell(digests, _Release(kind, visit, now))

    def work(self) -> None:
        """Let the shadows live through a slice of what was told."""
        left = min(self._num_told, max(SLICE, self._num_told - MAX_BACKLOG))
        self._num_told -= left
        while left:
            digests, release = self._backlog[0]
            most = left if release else min(left, _AGE_EVERY - self._num_uses % _AGE_EVERY)
            part = digests[: -most - 1 : -1]
            del digests[-most:]
            left -= len(part)
            if not digests:
                self._backlog.popleft()
            if release:
                self._by_age.release(part, release)
                self._by_odds.release(part, release)
            else:
                self._use(part)

    def _use(self, digests: list[bytes]) -> None:
        self._by_age.use(digests)
        self._by_odds.use(digests)
        self._num_uses += len(digests)
        if self._num_uses % _AGE_EVERY == 0:
            self._judge()

    def _tell(self, digests: Sequence[bytes], release: _Release | None) -> None:
        one_in = self._one_in
        sample = [d for d in reversed(digests) if not (d[-1] << 8 | d[-2]) % one_in]
        if sample:
            self._backlog.append(_Told(sample, release))
            self._num_told += len(sample)

    def _judge(self) -> None:
        by_age, by_odds = self._by_age, self._by_odds
        by_age.hits *= _KEPT
        by_odds.hits *= _KEPT
        self._num_recent = self._num_recent * _KEPT + _AGE_EVERY
        few = min(by_age.hits, self._num_recent - by_age.hits)
        gain = by_odds.hits - by_age.hits
        if self.follows_odds:
            self.follows_odds = gain >= END * few
        else:
            self.follows_odds = gain >= max(BEGIN * few, MIN_HITS)


class _Shadow:
    """A cache of names; with ``odds`` it evicts by them, without by age."""

    def __init__(self, capacity: int, odds: ReuseOdds | None) -> None:
        self._capacity = capacity
        self._odds = odds
        self._in_use: set[bytes] = set()
        self._free: RunQueues[bytes] = RunQueues()
        self._chosen: tuple[Run[bytes], Seconds] | None = None
        self.hits = 0.0

    def use(self, digests: list[bytes]) -> None:
        free, in_use = self._free, self._in_use
        found = [digest for digest in digests if digest in free.items]
        self.hits += len(found) + sum([digest in in_use for digest in digests])
        free.remove(found)
        in_use.update(digests)

    def release(self, digests: list[bytes], release: _Release) -> None:
        kind, visit, now = release
        used = [digest for digest in digests if digest in self._in_use]
        if not used:
            return
        self._in_use.difference_update(used)
        self._free.add(used, kind, visit, now)
        while self._free and len(self._in_use) + len(self._free) > self._capacity:
            self._free.pop_from(self._victim(now))

    def _victim(self, now: Seconds) -> Run[bytes]:
        chosen = self._chosen
        if chosen is None or not chosen[0].items or chosen[1] != now:
            free, odds = self._free, self._odds
            run = free.oldest() if odds is None else free.least_likely(odds, now)
            chosen = self._chosen = (run, now)
        return chosen[0]
