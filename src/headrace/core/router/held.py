"""Held: requests without a replica that are not to be placed yet. Each has a time to come back.

They stand beside the waiting queue and return to it, in the order in which they lost their places,
with the time that they have waited already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.router.waiting import Deadlines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.core.router.requests import Tracked
    from headrace.core.router.waiting import WaitingQueue
    from headrace.types import RequestId, Seconds


@dataclass(frozen=True, slots=True)
class Rest:
    """A request that is held. ``may_move``: it goes at once where it was not tried yet."""

    tracked: Tracked
    since: Seconds
    until: Seconds
    may_move: bool


class Held:
    """Those of one Router; nearly always empty, and then it costs nothing."""

    def __init__(self, queue: WaitingQueue) -> None:
        self._queue = queue
        self._rests: dict[RequestId, Rest] = {}
        self._due = Deadlines()

    def __len__(self) -> int:
        return len(self._rests)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._rests

    def __iter__(self) -> Iterator[Rest]:
        return iter(list(self._rests.values()))

    def hold(self, tracked: Tracked, until: Seconds, now: Seconds, *, may_move: bool) -> None:
        """Take a request that has just come back out of the queue, until then."""
        self._queue.remove(tracked)
        self._rests[tracked.id] = Rest(tracked, now, until, may_move)
        self._due.add(until, tracked.id)

    def let_go(self, request_id: RequestId) -> None:
        """Put a request back into the queue now, if it is held."""
        rest = self._rests.get(request_id)
        if rest is not None:
            self.remove(rest.tracked)
            self._queue.take_back(rest.tracked, rest.since)

    def remove(self, tracked: Tracked) -> bool:
        """Forget a request; return whether it was here."""
        found = self._rests.pop(tracked.id, None)
        if not self._rests:
            self._due = Deadlines()
        return found is not None

    def resume(self, now: Seconds) -> None:
        """Put those back whose time has come."""
        while (request_id := self._due.pop_due(now)) is not None:
            rest = self._rests.get(request_id)
            if rest is not None and rest.until <= now:
                self.let_go(request_id)

    def next_at(self) -> Seconds | None:
        """When ``resume`` may have something to do, None if nobody is held."""
        return self._due.next_at()
