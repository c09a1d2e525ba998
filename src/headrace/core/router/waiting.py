"""Requests without a replica, in a bounded queue, and when something is due."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.router.lanes import Group, Lanes
from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from headrace.core.router.requests import Tracked
    from headrace.types import Request, RequestId, Seconds, Tokens


class WaitingQueue:
    """New groups in the order of lanes.py; before them all, those that lost their place.

    New requests are bounded in number; those that come back were admitted once and always fit.
    Any member may leave at any time. Whoever comes while nobody waits enters no lane: mostly it
    is placed before the next one comes.
    """

    def __init__(self, *, max_requests: int, max_wait: Seconds, is_fair: bool = True) -> None:
        self._max_requests = max_requests
        self._max_wait = max_wait
        self._back: dict[RequestId, Group] = {}
        self.lanes = Lanes(is_fair=is_fair)
        self._alone: Group | None = None  # in no lane, as all are empty
        self._num_requests = 0
        self._num_tokens = 0

    def __len__(self) -> int:
        """Waiting requests (not groups)."""
        return self._num_requests

    @property
    def num_tokens(self) -> Tokens:
        """Prompt tokens of all that wait, an upper bound of the work they bring."""
        return self._num_tokens

    def fits(self, num_requests: int) -> bool:
        """Whether so many more may wait."""
        return self._num_requests + num_requests <= self._max_requests

    def append(self, members: dict[RequestId, Tracked], now: Seconds) -> None:
        """Add a group behind the others of its kind."""
        group = Group(members, now)
        if self._num_requests:
            self._line_up()
            self.lanes.append(group)
        else:
            self._alone = group
        self._count(members, 1)

    def take_back(self, tracked: Tracked, since: Seconds) -> None:
        """Add a request alone, before all new ones, among others that came back by its time."""
        tracked.group = tracked.id
        members = {tracked.id: tracked}
        last = next(reversed(self._back.values()), None)
        self._back[tracked.id] = Group(members, since)
        if last is not None and since < last.since:
            self._back = dict(sorted(self._back.items(), key=_since))
        self._count(members, 1)

    def head(self) -> Group | None:
        """The group that is to be placed next, or None."""
        if self._back:
            return next(iter(self._back.values()))
        return self._alone or (self.lanes.head() if self._num_requests else None)

    def pop(self) -> Group:
        """Take the head; the queue is not empty."""
        group: Group | None
        if self._back:
            group = self._back.pop(next(iter(self._back)))
        elif self._alone is not None:
            group, self._alone = self._alone, None
            self.lanes.pass_by(group)
        else:
            group = self.lanes.pop()
        if group is None:
            raise InvariantBroken("nobody waits")
        self._count(group.members, -1)
        return group

    def remove(self, tracked: Tracked) -> None:
        """Take out one member, and its group with the last of them."""
        self._count({tracked.id: tracked}, -1)
        self._line_up()
        if tracked.group in self._back:
            del self._back[tracked.group]  # it came back alone
        else:
            self.lanes.remove(tracked)

    def room_for(self, request: Request, num_requests: int) -> list[Group]:
        """Return who must go so that so many like ``request`` fit; empty if that is no use."""
        self._line_up()
        missing = self._num_requests + num_requests - self._max_requests
        yielding: list[Group] = []
        for group in self.lanes.yielding(request, num_requests):
            yielding.append(group)
            missing -= len(group.members)
            if missing <= 0:
                return yielding
        return []

    def longest(self) -> Group | None:
        """The group that has waited longest, or None."""
        if not self._num_requests:
            return None  # as nearly always: it is asked several times for each event
        new = self._alone or self.lanes.oldest()
        if not self._back:
            return new
        heads = (next(iter(self._back.values())), new)
        return min(filter(None, heads), key=lambda group: group.since, default=None)

    def due_at(self) -> Seconds | None:
        """When somebody will have waited too long."""
        group = self.longest()
        return None if group is None else group.since + self._max_wait

    def check_integrity(self) -> None:
        """Counts are the sums of the groups, no group is empty, the bound holds."""
        self._line_up()
        self.lanes.check_integrity()
        groups = [*self._back.values(), *self.lanes]
        waiting = [tracked for group in groups for tracked in group.members.values()]
        num_tokens = sum(tracked.prompt_tokens for tracked in waiting)
        if (len(waiting), num_tokens) != (self._num_requests, self._num_tokens):
            raise InvariantBroken(
                f"{len(waiting)} wait with {num_tokens} tokens, "
                f"counted are {self._num_requests} with {self._num_tokens}"
            )
        num_new = sum(len(group.members) for group in self.lanes)
        if num_new > self._max_requests or not all(group.members for group in groups):
            raise InvariantBroken(f"{num_new} new ones > {self._max_requests}, or an empty group")

    def _line_up(self) -> None:
        """Somebody else may be next: whoever is alone goes where the others of its kind go."""
        if self._alone is not None:
            self.lanes.append(self._alone)
            self._alone = None

    def _count(self, members: dict[RequestId, Tracked], sign: int) -> None:
        self._num_requests += sign * len(members)
        for each in members.values():
            self._num_tokens += sign * each.prompt_tokens


def _since(item: tuple[RequestId, Group]) -> Seconds:
    return item[1].since


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
