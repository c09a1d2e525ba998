"""Slices: what a long table takes in and gives back, a bounded number of blocks with each event.

So a prompt of any length costs no event more than a slice of each. It knows no order of tables but
first come, first served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.core.kvcache.blocks import BlockPool
    from headrace.core.kvcache.leaving import Leaving
    from headrace.core.kvcache.taking import Taking
    from headrace.types import Seconds


SLICE = 512
"""Blocks that a table takes in or gives back at once. Either takes 0.3 to 0.45 us a block
(benchmarks/micro/long_prompt.py), and one event may do both, twice: as it begins and for a step."""

PAUSE: Seconds = 0.0005
"""Between two slices when nothing else happens: others' events come between them."""


class Slices:
    """``taking`` and ``leaving``, and when they go on."""

    def __init__(self, pool: BlockPool, taking: Taking, leaving: Leaving) -> None:
        self._pool = pool
        self.taking = taking
        self.leaving = leaving
        self._now: Seconds = 0.0

    @property
    def are_due(self) -> bool:
        """Whether there is more to do: then it should not wait for anybody's event."""
        return self.taking.is_under_way or self.leaving.is_under_way

    def next_wakeup(self) -> Seconds | None:
        """Return when to go on at the latest."""
        return self._now + PAUSE if self.are_due else None

    def work(self, now: Seconds) -> None:
        """Do a slice of each, once for each event."""
        self._now = now
        self.leaving.work()
        self.taking.work()

    def regain(self, count: int) -> int:
        """Free ``count`` blocks of those that leave, or some more, or all; return how many.

        For who needs them now: it takes as long as it takes.
        """
        pool, before = self._pool, self._pool.num_free
        while self.leaving.is_under_way and pool.num_free - before < count:
            self.leaving.work()
        return pool.num_free - before
