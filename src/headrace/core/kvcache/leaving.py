"""Leaving: blocks that are in no table any more and not free yet.

Blocks leave in **runs**, a table's at a time. A run waits behind a **fence** until the step that
touches it is done; then its blocks are given back, at most ``slice_blocks`` at once and the rest
with the events that follow. Who needs the memory does not wait for that: see ``Slices.regain``.

To the books (ledger.py) all of them are held; it knows no tables and no content.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from headrace.types import BlockId, StepId

Run = tuple["BlockId", ...]


class Leaving:
    """``give_back`` makes blocks free."""

    def __init__(self, give_back: Callable[[Run], None], slice_blocks: int) -> None:
        self._give_back = give_back
        self._slice = slice_blocks
        self._fences: dict[StepId, list[Run]] = {}
        self._queue: deque[Run] = deque()  # what no step touches
        self.num_places = 0  # of blocks that leave; each counts as a place in a table does

    @property
    def oldest_fence(self) -> float:
        """The first of the steps that blocks wait for; infinity if they wait for none."""
        return next(iter(self._fences), inf)

    @property
    def is_under_way(self) -> bool:
        """Whether there are blocks that wait for nothing but their turn."""
        return bool(self._queue)

    def leave(self, blocks: Run, after: StepId | None) -> None:
        """Give blocks back, in this order: from now on, or when step ``after`` is done."""
        if not blocks:
            return
        self.num_places += len(blocks)
        if after is None:
            self._begin(blocks)
        else:
            self._fences.setdefault(after, []).append(blocks)

    def step_done(self, step: StepId) -> None:
        """Open the fence of a step that is done, or has failed."""
        for blocks in self._fences.pop(step, ()):
            self._begin(blocks)

    def work(self) -> None:
        """Give a slice back."""
        if self._queue:
            self._begin(self._queue.popleft(), goes_on=True)

    def forget_strays(self, steps: Container[StepId]) -> None:
        """Drop the fences of steps that are none of ``steps``: nobody would ever open them."""
        self._fences = {step: runs for step, runs in self._fences.items() if step in steps}
        self.num_places = sum(1 for _ in self.blocks())

    def blocks(self) -> Iterator[BlockId]:
        """All places. O(n)."""
        fenced = chain.from_iterable(self._fences.values())
        return chain.from_iterable(chain(fenced, self._queue))

    def _begin(self, blocks: Run, *, goes_on: bool = False) -> None:
        first, rest = blocks[: self._slice], blocks[self._slice :]
        self.num_places -= len(first)
        self._give_back(first)
        if not rest:
            return
        if goes_on:
            self._queue.appendleft(rest)
        else:
            self._queue.append(rest)
