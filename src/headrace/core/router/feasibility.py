"""Feasibility: how soon a first token can come at best, before any replica is asked.

Who is refused for it must not be refused wrongly, so this is a lower bound. It counts only what
an engine computes first in whatever order it keeps its queue (its tenant's work of a class that
is at least as urgent, other tenants' work of more urgent classes), takes off the usual error of
the replica's step times, and expects no wait at a replica that it has seen too little of. An
engine knows its own queue and has the last word.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.core.balancer.predicted_ttft import seconds_to_first_token
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.core.balancer.policy import Candidate, ReplicaView
    from headrace.core.router.fleet import Fleet
    from headrace.core.router.requests import Attempt, Tracked
    from headrace.types import ReplicaId, Request, Seconds

MAX_ERROR = 0.25
"""Relative error of step times above which nobody is refused because of them."""

_URGENCY = {each: index for index, each in enumerate(PriorityClass)}


def soonest_first_token(tracked: Tracked, candidates: Iterable[Candidate], fleet: Fleet) -> Seconds:
    """Return the least time to the first token on any of ``candidates`` (at least one)."""
    length = tracked.prompt_tokens

    def least(candidate: Candidate) -> Seconds:
        certainty = _certainty(candidate.view.replica, fleet)
        if not certainty:
            return 0.0
        view = _ahead(tracked.request, candidate.view, fleet)
        return certainty * seconds_to_first_token(view, length - candidate.cached_tokens, length)

    return min(map(least, candidates))


def _certainty(replica: ReplicaId, fleet: Fleet) -> float:
    """Return what share of a predicted time is sure to pass, 0 if nothing can be said."""
    error = fleet.step_times.error(replica)
    if error is None or error > MAX_ERROR or not fleet.step_times.is_known(replica):
        return 0.0
    return 1.0 - error


def _ahead(request: Request, view: ReplicaView, fleet: Fleet) -> ReplicaView:
    """Return a replica as if it had only the requests that go before this one, and all decodes."""
    attempts = [
        attempt
        for attempt in fleet.members[view.replica].attempts.values()
        if _goes_before(attempt.tracked.request, request)
    ]
    return replace(
        view,
        outstanding=len(attempts),
        prefill_tokens=sum(attempt.uncached for attempt in attempts if not attempt.answered),
        context_tokens=sum(map(_context, attempts)),
    )


def _goes_before(other: Request, mine: Request) -> bool:
    lead = _URGENCY[mine.priority] - _URGENCY[other.priority]
    return lead > 0 or (lead == 0 and other.tenant == mine.tenant)


def _context(attempt: Attempt) -> int:
    return attempt.tracked.prompt_tokens + len(attempt.tokens)
