"""Least likely to come back first, by learned odds, as long as that beats LRU.

It begins as LRU and is LRU, to the block, whenever the guard's shadows do not show that the
odds do better (guard.py); so it has little to lose. What it knows of content: its kind (marks.py),
that is session, turn, size and sharing, and its age.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.kvcache.eviction.guard import Guard
from headrace.core.kvcache.eviction.marks import alike
from headrace.core.kvcache.eviction.odds import ReuseOdds
from headrace.core.kvcache.eviction.runs import RunQueues

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headrace.core.kvcache.eviction.marks import Mark
    from headrace.core.kvcache.eviction.runs import Run
    from headrace.types import BlockId, Seconds


class ForesightOrder:
    """O(1) per block and O(kinds) per run of blocks."""

    def __init__(self, num_blocks: int) -> None:
        self._odds = ReuseOdds()
        self._guard = Guard(num_blocks, self._odds)
        self._queues: RunQueues[BlockId] = RunQueues()
        self._victim: tuple[Run[BlockId], Seconds, bool] | None = None
        self._newest: tuple[Run[BlockId], bytes] | None = None  # with its shallowest digest

    def __len__(self) -> int:
        return len(self._queues)

    def __contains__(self, block: object) -> bool:
        return block in self._queues

    @property
    def follows_odds(self) -> bool:
        """Whether it is more than LRU at the moment."""
        return self._guard.follows_odds

    def used(self, marks: Sequence[Mark], now: Seconds) -> None:
        """Learn that content was wanted."""
        if self._newest is not None:
            self._watch(*self._newest, now)
        digests = [mark.digest for mark in marks]
        self._odds.came_back(digests, now)
        self._guard.used(digests)

    def add(self, blocks: Sequence[BlockId], marks: Sequence[Mark], now: Seconds) -> None:
        """Take blocks in, with their kinds as they are now."""
        for first, end in alike(marks):
            kind, visit = marks[first].kind, marks[first].visit.number
            run = self._queues.add(blocks[first:end], kind, visit, now)
            newest = self._newest
            if newest is not None and newest[0] is not run:
                self._watch(*newest, now)
            digests = [mark.digest for mark in marks[first:end]]
            self._newest = (run, digests[-1])
            self._guard.released(digests, kind, visit, now)

    def work(self) -> None:
        """Go on learning, a slice for each event."""
        self._guard.work()

    def remove(self, blocks: Iterable[BlockId]) -> None:
        """Take blocks out. Raises KeyError."""
        self._queues.remove(blocks)

    def pop(self, now: Seconds) -> BlockId:
        """Take the tail of the run that is worth least."""
        follows = self._guard.follows_odds
        chosen = self._victim
        if chosen is None or not chosen[0].items or chosen[1:] != (now, follows):
            queues = self._queues
            run = queues.least_likely(self._odds, now) if follows else queues.oldest()
            chosen = self._victim = (run, now, follows)
        return self._queues.pop_from(chosen[0])

    def victims(self, now: Seconds) -> Iterator[BlockId]:
        """All blocks, next victim first: every run to its end."""
        odds = self._odds if self._guard.follows_odds else None
        for run in self._queues.in_order(odds, now):
            yield from run.items

    def _watch(self, run: Run[BlockId], digest: bytes, now: Seconds) -> None:
        """Await the return of a run that is complete, known by its shallowest content."""
        self._newest = None
        self._odds.watch(digest, run.kind, run.since, now)
        if self._odds.refresh(now):
            self._victim = None
