"""Deadlines: whose time is over."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from headrace.core.scheduler.sequence import Status

if TYPE_CHECKING:
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import Seconds, SequenceId

SLACK = 64
"""Entries of ended sequences that may lie about, beside as many as are live."""


class Deadlines:
    """A heap of sequences by deadline; those that ended are forgotten when they come up."""

    def __init__(self) -> None:
        self._heap: list[tuple[Seconds, SequenceId, Sequence]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, sequence: Sequence, deadline: Seconds) -> None:
        """Watch a sequence."""
        heappush(self._heap, (deadline, sequence.id, sequence))

    def next_at(self) -> Seconds | None:
        """Return when to look again, None if nobody is watched."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: Seconds) -> Sequence | None:
        """Return a live sequence whose deadline has come."""
        heap = self._heap
        while heap:
            deadline, _, sequence = heap[0]
            if sequence.status is not Status.ENDED:
                if deadline > now:
                    return None
                heappop(heap)
                return sequence
            heappop(heap)
        return None

    def tidy(self, num_live: int) -> None:
        """Keep the heap free of what has ended."""
        if len(self._heap) > 2 * num_live + SLACK:
            self._heap = [entry for entry in self._heap if entry[2].status is not Status.ENDED]
            heapify(self._heap)
