"""Router: which replica gets which request, and what becomes of requests that none can take.

Every accepted request ends exactly once: by an Output with ``finish``, by ``Fail``, or because
its client is gone. A request waits while no replica is ready or all are full, in a bounded queue
and for a bounded time. It knows no text, no HTTP and no processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, assert_never

from headrace.core.router.events import (
    CancelAt,
    ClientGone,
    Deliver,
    Dispatch,
    Drain,
    Drained,
    Fail,
    LoadReported,
    Outputs,
    RejectedByReplica,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
    RouterEffect,
    RouterEvent,
)
from headrace.core.router.placement import LeastOutstanding, ReplicaView
from headrace.core.router.waiting import Deadlines, Tracked, WaitingQueue
from headrace.errors import DeadlineExceeded, NotReady, Overloaded
from headrace.errors import ReplicaLost as LostError
from headrace.machine import Tick

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headrace.core.router.placement import Placement
    from headrace.types import ReplicaId, RequestId, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLimits:
    """Bounds of a Router."""

    max_waiting: int = 256  # requests, >= 1
    max_wait: Seconds = 30.0  # in the queue, > 0
    max_outstanding: int = 512  # requests on one replica, >= 1 (a group may overshoot it)
    deadline_grace: Seconds = 2.0  # how long after a deadline an engine may still say so itself


class Router:
    """Decides for one gateway. A Machine (rules M1-M6)."""

    def __init__(
        self, limits: RouterLimits | None = None, placement: Placement | None = None
    ) -> None:
        self._limits = limits or RouterLimits()
        self._placement = placement or LeastOutstanding()
        self._replicas: dict[ReplicaId, ReplicaView] = {}
        self._alive: dict[RequestId, Tracked] = {}
        self._queue = WaitingQueue(
            max_requests=self._limits.max_waiting, max_wait=self._limits.max_wait
        )
        self._deadlines = Deadlines()
        self._drain_until: Seconds | None = None
        self._drained = False

    @property
    def replicas(self) -> tuple[ReplicaView, ...]:
        """Ready replicas, in the order in which they became ready."""
        return tuple(self._replicas.values())

    @property
    def num_alive(self) -> int:
        """Accepted requests that have not ended."""
        return len(self._alive)

    @property
    def num_waiting(self) -> int:
        """Of those, the ones that no replica has yet."""
        return len(self._queue)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused because of a Drain."""
        return self._drain_until is not None

    def handle(self, event: RouterEvent, now: Seconds) -> Sequence[RouterEffect]:
        """Take one event at time ``now``; return what should be done, in order."""
        effects: list[RouterEffect] = []
        match event:
            case Outputs():
                self._take_outputs(event, now, effects)
            case RequestArrived():
                self._admit(event, now, effects)
            case ClientGone():
                self._forget(event.request_ids, effects)
            case LoadReported():
                self._note_load(event, now)
            case RejectedByReplica():
                self._take_rejection(event, effects)
            case ReplicaReady():
                self._lose(event.replica, "it started anew", effects)
                self._replicas[event.replica] = ReplicaView(replica=event.replica, progress_at=now)
            case ReplicaLost():
                self._lose(event.replica, event.reason, effects)
            case Drain():
                self._drain_until = now + event.limit
            case Tick():
                pass
            case _:
                assert_never(event)
        self._expire(now, effects)
        self._place(now, effects)
        self._finish_drain(effects)
        return effects

    def next_wakeup(self) -> Seconds | None:
        """When a request has waited too long, is past its deadline, or the drain is over."""
        drain_until = None if self._drained else self._drain_until
        times = (self._queue.due_at(), self._deadlines.next_at(), drain_until)
        return min((time for time in times if time is not None), default=None)

    def check_integrity(self) -> None:
        """Counts agree with the requests they count, and the bounds hold."""
        self._queue.check_integrity()
        sent = [tracked for tracked in self._alive.values() if tracked.replica is not None]
        assert len(sent) + len(self._queue) == len(self._alive), (len(sent), len(self._queue))
        for view in self._replicas.values():
            count = sum(tracked.replica == view.replica for tracked in sent)
            assert count == view.outstanding, (view.replica, count, view.outstanding)
        assert all(tracked.replica in self._replicas for tracked in sent)
        assert len(self._deadlines) <= 2 * len(self._alive) + 64

    def _admit(self, event: RequestArrived, now: Seconds, effects: list[RouterEffect]) -> None:
        requests = event.requests
        if self.draining:
            refusal = (NotReady.code, "the server is shutting down")
        elif not self._queue.fits(len(requests)) and not self._has_room():
            refusal = self._no_room()
        else:
            group = requests[0].id
            members = {request.id: Tracked(request, group) for request in requests}
            self._alive.update(members)
            self._queue.append(members, now)
            if requests[0].deadline is not None:
                for request in requests:
                    self._deadlines.add(requests[0].deadline, request.id)
            return
        retry_after = self._retry_after(now)
        effects.extend(Fail(request.id, *refusal, retry_after) for request in requests)

    def _take_outputs(self, event: Outputs, now: Seconds, effects: list[RouterEffect]) -> None:
        view = self._replicas.get(event.replica)
        if view is None:
            return
        view.progress_at = now
        alive = self._alive
        wanted = []
        for output in event.outputs:
            tracked = alive.get(output.request_id)
            if tracked is None or tracked.replica != event.replica:
                continue  # cancelled meanwhile, or from an attempt that was given up
            wanted.append(output)
            if output.finish is not None:
                self._end(tracked)
        if wanted:
            effects.append(Deliver(tuple(wanted)))

    def _take_rejection(self, event: RejectedByReplica, effects: list[RouterEffect]) -> None:
        tracked = self._alive.get(event.request_id)
        if tracked is not None and tracked.replica == event.replica:
            self._end(tracked)
            effects.append(Fail(event.request_id, event.code, event.reason))

    def _note_load(self, event: LoadReported, now: Seconds) -> None:
        view = self._replicas.get(event.replica)
        if view is None:
            return
        report, last = event.report, view.report
        idle = report.running + report.waiting == 0
        if idle or last is None or report.step != last.step:
            view.progress_at = now
        view.report = report

    def _forget(self, ids: Iterable[RequestId], effects: list[RouterEffect]) -> None:
        for request_id in ids:
            tracked = self._alive.get(request_id)
            if tracked is None:
                continue
            if tracked.replica is not None:
                effects.append(CancelAt(tracked.replica, request_id))
            self._end(tracked)

    def _lose(self, replica: ReplicaId, reason: str, effects: list[RouterEffect]) -> None:
        if self._replicas.get(replica) is None:
            return
        lost = [tracked for tracked in self._alive.values() if tracked.replica == replica]
        for tracked in lost:
            self._end(tracked)
            message = f"replica {replica} was lost: {reason}"
            effects.append(Fail(tracked.request.id, LostError.code, message, 1.0))
        del self._replicas[replica]

    def _end(self, tracked: Tracked) -> None:
        del self._alive[tracked.request.id]
        if tracked.replica is None:
            self._queue.remove(tracked)
        else:
            self._replicas[tracked.replica].outstanding -= 1
        self._deadlines.sweep(self._alive)

    def _expire(self, now: Seconds, effects: list[RouterEffect]) -> None:
        while (request_id := self._deadlines.pop_due(now)) is not None:
            self._pass_deadline(request_id, now, effects)
        while (due := self._queue.due_at()) is not None and due <= now:
            code, reason = self._no_room()
            retry_after = self._retry_after(now)
            head = self._queue.head()
            for tracked in list(head.members.values()) if head else ():
                self._end(tracked)
                effects.append(Fail(tracked.request.id, code, reason, retry_after))
        if self._drain_until is not None and self._drain_until <= now:
            for request_id in list(self._alive):
                self._forget((request_id,), effects)
                effects.append(Fail(request_id, NotReady.code, "the server is shutting down"))

    def _pass_deadline(
        self, request_id: RequestId, now: Seconds, effects: list[RouterEffect]
    ) -> None:
        tracked = self._alive.get(request_id)
        if tracked is None or tracked.request.deadline is None:
            return
        at = tracked.request.deadline + self._limits.deadline_grace
        if tracked.replica is not None and now < at:
            self._deadlines.add(at, request_id)  # the engine knows the deadline too
            return
        self._forget((request_id,), effects)
        effects.append(Fail(request_id, DeadlineExceeded.code, "the request's time is over"))

    def _has_room(self) -> bool:
        limit = self._limits.max_outstanding
        return any(view.outstanding < limit for view in self._replicas.values())

    def _place(self, now: Seconds, effects: list[RouterEffect]) -> None:
        limit = self._limits.max_outstanding
        while self._queue:
            candidates = [view for view in self._replicas.values() if view.outstanding < limit]
            if not candidates:
                return
            members = self._queue.pop().members
            first = next(iter(members.values()))
            choice = self._placement.choose(first.request, candidates)
            view = self._replicas[choice.replica]
            if view.outstanding == 0:
                view.progress_at = now
            view.outstanding += len(members)
            for tracked in members.values():
                tracked.replica = choice.replica
                effects.append(Dispatch(choice.replica, tracked.request, choice.reason))

    def _finish_drain(self, effects: list[RouterEffect]) -> None:
        if self._drain_until is not None and not self._alive and not self._drained:
            self._drained = True
            effects.append(Drained())

    def _no_room(self) -> tuple[str, str]:
        if not self._replicas:
            return NotReady.code, "no replica is ready; try again shortly"
        return Overloaded.code, f"all replicas are busy and {len(self._queue)} requests wait"

    def _retry_after(self, now: Seconds) -> Seconds:
        """The wait of the head so far, in whole seconds: the best simple guess at the next one."""
        head = self._queue.head()
        return 1.0 if head is None else float(max(1, ceil(now - head.since)))
