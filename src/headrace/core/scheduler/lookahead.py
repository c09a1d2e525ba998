"""Lookahead: what lower KV tiers must know of a scheduler to fetch and save ahead of need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.core.kvcache.table import BlockTable
    from headrace.core.scheduler.scheduler import Scheduler


class Lookahead:
    """Implements ``Line`` of core/kvcache/tiers.py."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not (len(self._scheduler.running) or len(self._scheduler.waiting))

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not len(self._scheduler.waiting)

    def first_in_line(self, count: int) -> list[BlockTable]:
        """Return the tables of sequences that wait and are next; those still parked left out."""
        waiting = self._scheduler.waiting
        waiting.settle(self._scheduler.kv.coming.take_settled())
        return [sequence.table for sequence in waiting.next_few(count)]

    def num_spare(self) -> int:
        """Return how many free blocks neither prompts under way lack nor decodes grow into."""
        kv, running = self._scheduler.kv, self._scheduler.running
        lacking = sum(kv.num_lacking(s.table) for s in running if s.num_missing > 1)
        return kv.num_free - lacking - len(running)
