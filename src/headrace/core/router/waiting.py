"""What the Router keeps about requests: the bounded queue, and when something is due."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.types import ReplicaId, Request, RequestId, Seconds


@dataclass(slots=True)
class Tracked:
    """An accepted request that has not ended; ``replica`` is None while it waits."""

    request: Request
    group: RequestId  # the first id of its group
    replica: ReplicaId | None = None


@dataclass(slots=True)
class Group:
    """Requests that wait together to be placed together."""

    members: dict[RequestId, Tracked]
    since: Seconds


class WaitingQueue:
    """Groups in order of arrival, bounded in requests; any member may leave at any time."""

    def __init__(self, *, max_requests: int, max_wait: Seconds) -> None:
        self._max_requests = max_requests
        self._max_wait = max_wait
        self._groups: dict[RequestId, Group] = {}
        self._num_requests = 0

    def __len__(self) -> int:
        """Waiting requests (not groups)."""
        return self._num_requests

    def fits(self, num_requests: int) -> bool:
        """Whether so many more may wait."""
        return self._num_requests + num_requests <= self._max_requests

    def append(self, members: dict[RequestId, Tracked], now: Seconds) -> None:
        """Add a group behind the others."""
        self._groups[next(iter(members))] = Group(members, now)
        self._num_requests += len(members)

    def head(self) -> Group | None:
        """The group that has waited longest, or None."""
        return next(iter(self._groups.values()), None)

    def pop(self) -> Group:
        """Take the group that has waited longest; the queue is not empty."""
        group = self._groups.pop(next(iter(self._groups)))
        self._num_requests -= len(group.members)
        return group

    def remove(self, tracked: Tracked) -> None:
        """Take out one member, and its group with the last of them."""
        group = self._groups[tracked.group]
        del group.members[tracked.request.id]
        self._num_requests -= 1
        if not group.members:
            del self._groups[tracked.group]

    def due_at(self) -> Seconds | None:
        """When the head will have waited too long."""
        head = self.head()
        return None if head is None else head.since + self._max_wait

    def check_integrity(self) -> None:
        """The count is the sum of the groups, no group is empty, the bound holds."""
        total = sum(len(group.members) for group in self._groups.values())
        assert total == self._num_requests <= self._max_requests, (total, self._num_requests)
        assert all(group.members for group in self._groups.values())


class Due(NamedTuple):
    """A time and the request it is about; ties are broken by order of entry."""

    at: Seconds
    order: int
    request_id: RequestId


class Deadlines:
    """A heap of times. Requests that ended stay in it until they come up or are swept out."""

    def __init__(self) -> None:
        self._heap: list[Due] = []
        self._order = 0

    def __len__(self) -> int:
        """Entries, dead ones included."""
        return len(self._heap)

    def add(self, at: Seconds, request_id: RequestId) -> None:
        """Note that something is due."""
        heapq.heappush(self._heap, Due(at, self._order, request_id))
        self._order += 1

    def next_at(self) -> Seconds | None:
        """The earliest time, or None."""
        return self._heap[0].at if self._heap else None

    def pop_due(self, now: Seconds) -> RequestId | None:
        """Take the earliest entry if its time has come."""
        if self._heap and self._heap[0].at <= now:
            return heapq.heappop(self._heap).request_id
        return None

    def sweep(self, alive: dict[RequestId, Tracked]) -> None:
        """Drop the entries of ended requests once they are the larger part."""
        if len(self._heap) > 2 * len(alive) + 64:
            self._heap = [due for due in self._heap if due.request_id in alive]
            heapq.heapify(self._heap)
