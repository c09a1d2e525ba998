"""Placing: from the queue to replicas, as long as one of them has room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.router.choosing import Chooser
from headrace.core.router.events import Dispatch
from headrace.core.router.roles import fitting
from headrace.core.router.sources import Sources
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from headrace.core.balancer.candidates import Candidates, Takers
    from headrace.core.balancer.policy import Policy
    from headrace.core.router.admission import Admission
    from headrace.core.router.events import RouterEffect
    from headrace.core.router.fleet import Fleet
    from headrace.core.router.lanes import Group
    from headrace.core.router.limits import RouterLimits
    from headrace.core.router.oversight import Oversight
    from headrace.core.router.streams import Streams
    from headrace.types import Request, Seconds


class Placer:
    """Of one Router. ``retry_at``: when to look again, while requests wait for busy replicas."""

    def __init__(
        self,
        limits: RouterLimits,
        policy: Policy,
        *,
        fleet: Fleet,
        streams: Streams,
        admission: Admission,
        oversight: Oversight,
    ) -> None:
        self.chooser = Chooser(policy, Sources(fleet, is_on=limits.kv_transfer))
        self.retry_at: Seconds | None = None
        self._limits = limits
        self._fleet = fleet
        self._streams = streams
        self._admission = admission
        self._oversight = oversight

    def place(self, now: Seconds, effects: list[RouterEffect]) -> None:
        """Send what waits, in the order of the queue, until its head finds no place."""
        fleet, queue = self._fleet, self._streams.queue
        while (group := queue.head()) is not None:
            first = group.first
            takers = self._takers(first.request, now, effects)
            if takers is None:
                self.retry_at = fleet.availability.busy_until(now)
                return
            candidates = fitting(first, fleet.candidates(first, takers), fleet, self._limits)
            if not candidates:  # those of its role are full
                return
            refusal = self._admission.infeasible(first, candidates, fleet, now)
            if refusal is None:
                self._send(group, candidates, now, effects)
            else:
                effects.extend(self._streams.end_groups([group], refusal, now))

    def _send(
        self, group: Group, candidates: Candidates, now: Seconds, effects: list[RouterEffect]
    ) -> None:
        self._streams.queue.pop()
        candidate, choice, source, failure = self.chooser.choose(group.first, candidates)
        if failure is not None:
            effects.append(failure)
        waited = now - group.since
        requests = self._fleet.send(
            group.members.values(), candidate, now, source, choice.predicted_ttft
        )
        for client_id, request in zip(group.members, requests, strict=True):
            effects.append(Dispatch(choice.replica, request, choice, client_id, waited))

    def _takers(self, request: Request, now: Seconds, effects: list[RouterEffect]) -> Takers | None:
        """Return the replicas that may take this request now, None if none may."""
        urgent = self._limits.fair_queue and request.priority is PriorityClass.INTERACTIVE
        availability = self._fleet.availability
        found = availability.open(now, urgent=urgent)
        if not found.members and not availability.taking():
            self._oversight.try_least_bad(now, effects)
            found = availability.open(now, urgent=urgent)
        return found.takers if found.members else None
