"""Router: which replica gets which request, and what becomes of those that it cannot serve.

Admission, the order of the queue, trust in replicas and their drains are decided here; streams.py
has the life of a request, fleet.py the load of replicas, core/balancer the choice between them.
It knows no text, no HTTP and no processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from headrace.core.balancer.least_requests import LeastRequests
from headrace.core.health import FailureDetector, ReplicaState
from headrace.core.router.admission import Admission, Refusal
from headrace.core.router.events import (
    AttemptFailed,
    ClientGone,
    Drain,
    Drained,
    DrainReplica,
    Fail,
    KvListed,
    KvReported,
    LoadReported,
    LoadSeen,
    Outputs,
    PeersHeard,
    ReplicaBeat,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
    ResumeReplica,
    RouterEffect,
    RouterEvent,
)
from headrace.core.router.figures import PoolFigures, pool_figures
from headrace.core.router.fleet import Fleet
from headrace.core.router.limits import RouterLimits
from headrace.core.router.oversight import build_oversight
from headrace.core.router.placing import Placer
from headrace.core.router.requests import Tracked, keys_of
from headrace.core.router.sharing import hear, share_of
from headrace.core.router.streams import Streams, deadline_failure
from headrace.errors import NotReady
from headrace.errors import ReplicaLost as LostError
from headrace.machine import Tick

__all__ = ["Router", "RouterLimits"]

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Policy, ReplicaView
    from headrace.core.router.gossip import PoolShare
    from headrace.types import ReplicaId, RequestId, Seconds


class Router:
    """Decides for one gateway. A Machine (rules M1-M6)."""

    def __init__(
        self, limits: RouterLimits | None = None, policy: Policy | None = None, *, seed: int = 0
    ) -> None:
        self._limits = limits or RouterLimits()
        self._health = FailureDetector(self._limits.health)
        self._fleet = Fleet(
            self._health,
            max_outstanding=self._limits.max_outstanding,
            discounts=self._limits.discount_claims,
        )
        self._admission = Admission(self._limits)
        self._streams = Streams(self._limits, self._fleet, self._admission.pace, seed)
        self._oversight = build_oversight(
            self._limits, self._fleet, self._health, self._streams, self._admission.quarantine
        )
        self._placer = Placer(
            self._limits,
            policy or LeastRequests(),
            fleet=self._fleet,
            streams=self._streams,
            admission=self._admission,
            oversight=self._oversight,
        )
        self._drain_until: Seconds | None = None
        self._drained = False

    @property
    def replicas(self) -> tuple[ReplicaView, ...]:
        """Connected replicas, in the order in which they became ready."""
        return tuple(member.view for member in self._fleet.members.values())

    @property
    def policy(self) -> str:
        """Name of the policy in use: another one after PolicyFailed."""
        return self._placer.chooser.policy.name

    @property
    def num_alive(self) -> int:
        """Accepted requests that have not ended."""
        return len(self._streams.alive)

    @property
    def num_waiting(self) -> int:
        """Of those, the ones that no replica has."""
        return len(self._streams.queue) + len(self._streams.held)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused because of a Drain."""
        return self._drain_until is not None

    def state(self, replica: ReplicaId) -> ReplicaState:
        """Return what this router thinks of a replica; LOST if it is not connected."""
        return self._fleet.availability.state(replica)

    def figures(self, now: Seconds) -> PoolFigures:
        """Return the load of the pool, for reports and pages."""
        return pool_figures(self._fleet, self._streams.queue, self._admission.pace, now)

    def share(self) -> PoolShare:
        """Return what other gateways are to be told of this one."""
        return share_of(self._fleet, self._streams.queue.lanes.service)

    def handle(self, event: RouterEvent, now: Seconds) -> Sequence[RouterEffect]:
        """Take one event at time ``now``; return what should be done, in order."""
        effects: list[RouterEffect] = []
        match event:
            case Outputs():
                self._take_outputs(event, now, effects)
            case LoadReported() | LoadSeen() | ReplicaBeat() | KvReported() | KvListed():
                self._oversight.take(event, now, effects)
            case RequestArrived():
                self._admit(event, now, effects)
            case ClientGone():
                self._streams.forget(event.request_ids, now, effects)
            case AttemptFailed():
                self._take_failure(event, now, effects)
            case ReplicaReady() | ReplicaLost() | DrainReplica() | ResumeReplica():
                self._oversight.change(event, now, effects)
            case PeersHeard() | Drain() | Tick():
                self._take_note(event, now)
            case _:
                assert_never(event)
        self._settle(now, effects)
        return effects

    def next_wakeup(self) -> Seconds | None:
        """When a wait, a deadline, a drain or a replica's time to show life is over."""
        if self._drained:
            return None
        times = [self._streams.next_at(), self._health.next_at(), self._drain_until]
        if self._streams.queue:
            times.append(self._placer.retry_at)
        if self._streams.held:
            times.append(self._streams.held.next_at())
        if self._fleet.drains:
            times.extend(self._oversight.drains_due())
        return min([time for time in times if time is not None], default=None)

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless counts agree with what they count, and bounds hold."""
        self._streams.check_integrity()
        self._fleet.check_integrity()
        self._health.check_integrity()

    def _take_note(self, event: PeersHeard | Drain | Tick, now: Seconds) -> None:
        if isinstance(event, Drain):
            self._drain_until = now + event.limit
        elif isinstance(event, PeersHeard):
            hear(self._fleet, event.loads, now)
            for key, amount in event.service.items():
                self._streams.queue.lanes.serve_elsewhere(key, amount)

    def _settle(self, now: Seconds, effects: list[RouterEffect]) -> None:
        """Do what time and the event at hand have made due."""
        if self._streams.held:
            self._oversight.resume(now)
        due = self._streams.next_at()
        if due is not None and due <= now:
            self._expire(now, effects)
        if self._drain_until is not None and self._drain_until <= now:
            self._give_up(now, effects)
        self._oversight.check(now, effects)
        if self._streams.queue:
            self._placer.place(now, effects)
        if self._fleet.drains:
            self._oversight.note_empty(effects)
        self._finish_drain(effects)

    def _admit(self, event: RequestArrived, now: Seconds, effects: list[RouterEffect]) -> None:
        requests, streams = event.requests, self._streams
        fits = streams.queue.fits(len(requests))
        refusal = self._admission.poison(requests[0], now)
        if self.draining:
            refusal = Refusal(NotReady.code, "the server is shutting down", 1.0)
        elif not (refusal or fits) and (streams.queue or not self._has_room(now)):
            yielding = streams.queue.room_for(requests[0], len(requests))
            refusal = self._admission.refusal(self._fleet, streams.queue, now)
            if yielding:
                effects.extend(streams.end_groups(yielding, refusal, now))
                refusal = None
        if refusal is not None:
            effects.extend(Fail(request.id, *refusal) for request in requests)
            return
        first = requests[0]
        length = len(first.prompt) if event.prompt_tokens is None else event.prompt_tokens
        keys = keys_of(first.chain)
        streams.admit({each.id: Tracked(each, first.id, length, keys) for each in requests}, now)

    def _take_outputs(self, event: Outputs, now: Seconds, effects: list[RouterEffect]) -> None:
        member = self._fleet.members.get(event.replica)
        if member is None:
            return
        member.view.progress_at = now
        num_ended = self._streams.deliver(event, member, now, effects)
        self._oversight.hand_over(event, now, effects)
        judgement = self._health.heard(event.replica, now, progress=True)
        self._oversight.judge(judgement, now, effects)
        if num_ended:
            self._oversight.judge(self._health.succeeded(event.replica, now), now, effects)

    def _take_failure(
        self, event: AttemptFailed, now: Seconds, effects: list[RouterEffect]
    ) -> None:
        member = self._fleet.members.get(event.replica)
        attempt = member.attempts.get(event.request_id) if member else None
        if member is None or attempt is None:
            return
        if event.busy_for is not None:
            member.busy_until = now + min(event.busy_for, self._limits.max_busy)
        effects.extend(self._streams.retry(attempt, event, now))
        if event.to_blame:
            self._oversight.judge(
                self._health.failed(event.replica, now, event.reason), now, effects
            )

    def _expire(self, now: Seconds, effects: list[RouterEffect]) -> None:
        streams = self._streams
        while (request_id := streams.deadlines.pop_due(now)) is not None:
            self._pass_deadline(request_id, now, effects)
        while (due := streams.queue.due_at()) is not None and due <= now:
            self._refuse_longest(now, effects)

    def _give_up(self, now: Seconds, effects: list[RouterEffect]) -> None:
        """The time of a drain is over."""
        for request_id in list(self._streams.alive):
            self._streams.forget((request_id,), now, effects)
            effects.append(Fail(request_id, NotReady.code, "the server is shutting down"))

    def _refuse_longest(self, now: Seconds, effects: list[RouterEffect]) -> None:
        streams = self._streams
        group = streams.queue.longest()
        refusal = self._admission.refusal(self._fleet, streams.queue, now)
        for tracked in list(group.members.values()) if group else ():
            code, reason, retry_after = refusal
            if tracked.answered:
                code, reason = LostError.code, f"its replica was lost, and {reason}"
            effects.append(streams.fail(tracked, Fail(tracked.id, code, reason, retry_after), now))

    def _pass_deadline(
        self, request_id: RequestId, now: Seconds, effects: list[RouterEffect]
    ) -> None:
        tracked = self._streams.alive.get(request_id)
        if tracked is None or tracked.request.deadline is None:
            return
        at = tracked.request.deadline + self._limits.deadline_grace
        if tracked.attempt is not None and now < at:
            self._streams.deadlines.add(at, request_id)  # the engine knows the deadline too
            return
        self._streams.forget((request_id,), now, effects)
        effects.append(deadline_failure(request_id))

    def _has_room(self, now: Seconds) -> bool:
        """Whether some replica may take a request now."""
        return bool(self._fleet.availability.open(now).members)

    def _finish_drain(self, effects: list[RouterEffect]) -> None:
        if self._drain_until is not None and not self._streams.alive and not self._drained:
            self._drained = True
            effects.append(Drained())
