"""Admission: who may wait, and what those are told who may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.core.router.feasibility import soonest_first_token
from headrace.core.router.pace import Pace, whole_seconds
from headrace.core.router.quarantine import Quarantine
from headrace.errors import DeadlineInfeasible, NotReady, Overloaded, PoisonRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate
    from headrace.core.router.fleet import Fleet
    from headrace.core.router.limits import RouterLimits
    from headrace.core.router.requests import Tracked
    from headrace.core.router.waiting import WaitingQueue
    from headrace.types import Request, Seconds

START_SECONDS = 5.0  # to say where nobody knows how long a replica takes to start


class Refusal(NamedTuple):
    """What a client is told: a code of errors.py, a sentence, and when to try again."""

    code: str
    reason: str
    retry_after: Seconds | None


class Admission:
    """Predicts from how fast requests left lately; promises nothing it has not seen."""

    def __init__(self, limits: RouterLimits) -> None:
        self.pace = Pace()
        self.quarantine = Quarantine()
        self._limits = limits

    def refusal(self, fleet: Fleet, queue: WaitingQueue, now: Seconds) -> Refusal:
        """Return what to tell a request that found no place, at the door or in the queue."""
        if not fleet.availability.taking():
            return self._not_ready()
        reason = f"all replicas are busy and {len(queue)} requests wait"
        seconds = self.pace.seconds_for(len(queue) + 1, now)
        if seconds is None:
            longest = queue.longest()
            seconds = 0.0 if longest is None else now - longest.since
        return Refusal(Overloaded.code, reason, whole_seconds(seconds, self._longest_answer))

    def poison(self, request: Request, now: Seconds) -> Refusal | None:
        """Return what to tell a request of which replicas have died lately."""
        left = self.quarantine.left(request, now)
        if not left:
            return None
        reason = (
            "replicas died while they ran this request; it is refused for another "
            f"{whole_seconds(left, left):.0f} s: change it, or report it to who runs this server"
        )
        return Refusal(PoisonRequest.code, reason, None)

    def infeasible(
        self, tracked: Tracked, candidates: Sequence[Candidate], fleet: Fleet, now: Seconds
    ) -> Refusal | None:
        """Return what to tell a request whose first token comes too late on every candidate."""
        if tracked.first_token_by is None or not self._limits.refuse_infeasible:
            return None
        left = tracked.first_token_by - now
        soonest = soonest_first_token(tracked, candidates, fleet)
        if soonest <= left:
            return None
        reason = (
            f"the first token would come in about {soonest:.2g} s, {left:.2g} s are left for it"
        )
        if left <= 0:
            reason = "the time for the first token was over before a replica had room"
        seconds = whole_seconds(soonest - left, self._longest_answer)
        return Refusal(DeadlineInfeasible.code, reason, seconds)

    @property
    def _longest_answer(self) -> Seconds:
        return 10 * self._limits.max_wait

    def _not_ready(self) -> Refusal:
        start = self._limits.start_seconds
        if start is None:
            reason, seconds = "no replica is ready; try again shortly", START_SECONDS
        else:
            reason = f"no replica is ready; one usually takes {start:.0f} s to start"
            seconds = start
        return Refusal(NotReady.code, reason, whole_seconds(seconds, self._longest_answer))
