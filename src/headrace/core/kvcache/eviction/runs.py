"""RunQueues: runs of content that left use together, in a queue for each kind.

A run is what one visit gave back in one go and is of one kind; within it the tail goes first.
With least recently used content of *every* kind at the head of its queue, the oldest of all is
the oldest head. For content that comes back after a typical pause, the least likely to come
back is at one of a queue's two ends, as the odds rise up to that pause and fall after it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import merge
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, KeysView

    from headrace.core.kvcache.eviction.marks import Kind
    from headrace.core.kvcache.eviction.odds import ReuseOdds
    from headrace.types import Seconds

T = TypeVar("T")


class Run(Generic[T]):
    """Items in the order of their going. ``number`` counts runs: lower is older."""

    __slots__ = ("items", "kind", "number", "since", "visit")

    def __init__(self, number: int, kind: Kind, visit: int, since: Seconds) -> None:
        self.number = number
        self.kind = kind
        self.visit = visit
        self.since = since
        self.items: OrderedDict[T, None] = OrderedDict()


class RunQueues(Generic[T]):
    """O(1) per item, but for choosing a run: O(kinds), of which there are few dozen."""

    def __init__(self) -> None:
        self._queues: dict[Kind, OrderedDict[int, Run[T]]] = {}
        self._runs: dict[T, Run[T]] = {}
        self._last: Run[T] | None = None
        self._num_runs = 0

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, item: object) -> bool:
        return item in self._runs

    @property
    def items(self) -> KeysView[T]:
        """What is in it."""
        return self._runs.keys()

    def add(self, items: Iterable[T], kind: Kind, visit: int, now: Seconds) -> Run[T]:
        """Append items to the newest run, if they belong there, or begin one.

        One visit's items of one kind come with one and the same ``kind``.
        """
        run = self._last
        if run is None or run.visit != visit or run.kind is not kind or not run.items:
            run = self._last = Run(self._num_runs, kind, visit, now)
            self._num_runs += 1
            self._queues.setdefault(kind, OrderedDict())[run.number] = run
        own, runs = run.items, self._runs
        for item in items:
            own[item] = None
            runs[item] = run
        return run

    def remove(self, items: Iterable[T]) -> None:
        """Take items out. Raises KeyError."""
        runs = self._runs
        for item in items:
            run = runs.pop(item)
            del run.items[item]
            if not run.items:
                self._close(run)

    def pop_from(self, run: Run[T]) -> T:
        """Take the next item of a run that is not empty."""
        item, _ = run.items.popitem(last=False)
        del self._runs[item]
        if not run.items:
            self._close(run)
        return item

    def oldest(self) -> Run[T]:
        """Return the run that left use first. Raises KeyError when there is none."""
        heads = [next(iter(queue.values())) for queue in self._queues.values()]
        if not heads:
            raise KeyError("no run")
        return min(heads, key=lambda run: run.number)

    def least_likely(self, odds: ReuseOdds, now: Seconds) -> Run[T]:
        """Return the run that is least worth its room. Raises KeyError when there is none."""
        ends: list[Run[T]] = []
        for queue in self._queues.values():
            ends.append(next(iter(queue.values())))
            ends.append(next(reversed(queue.values())))
        if not ends:
            raise KeyError("no run")
        return min(ends, key=lambda run: (odds.worth(run.kind, now - run.since), run.number))

    def in_order(self, odds: ReuseOdds | None, now: Seconds) -> Iterator[Run[T]]:
        """All runs as they would be chosen, one after the other: by odds, or the oldest first."""
        if odds is None:
            yield from merge(*(q.values() for q in self._queues.values()), key=_number)
            return
        queues = [deque(queue.values()) for queue in self._queues.values()]
        while queues:
            ends = [(end, queue) for queue in queues for end in (queue[0], queue[-1])]
            run, queue = min(
                ends, key=lambda end: (odds.worth(end[0].kind, now - end[0].since), end[0].number)
            )
            if run is queue[0]:
                queue.popleft()
            else:
                queue.pop()
            queues = [queue for queue in queues if queue]
            yield run

    def _close(self, run: Run[T]) -> None:
        queue = self._queues[run.kind]
        del queue[run.number]
        if not queue:
            del self._queues[run.kind]


def _number(run: Run[T]) -> int:
    return run.number
