"""The policy behind a guard: whatever a policy does, requests find a replica (fail open).

What the chosen replica lacks of a prompt it may fetch from another one (sources.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.core.balancer.least_requests import LeastRequests
from headrace.core.balancer.policy import Candidate
from headrace.core.router.events import PolicyFailed

if TYPE_CHECKING:
    from headrace.core.balancer.candidates import Candidates
    from headrace.core.balancer.policy import Choice, Policy
    from headrace.core.router.requests import Tracked
    from headrace.core.router.sources import Sources
    from headrace.types import KvSource


class Placement(NamedTuple):
    """Where a request goes; ``failure`` is what went wrong with the policy, if something."""

    candidate: Candidate  # with what is to be fetched among its cached tokens
    choice: Choice
    source: KvSource | None
    failure: PolicyFailed | None


class Chooser:
    """Asks the policy; after its first failure never again, but least_requests instead."""

    def __init__(self, policy: Policy, sources: Sources) -> None:
        self.policy = policy
        self._sources = sources

    def choose(self, tracked: Tracked, candidates: Candidates) -> Placement:
        """Return one of ``candidates`` (at least one), and why."""
        candidate, choice, failure = self._ask(tracked, candidates)
        fetch = self._sources.find(tracked, candidate)
        if fetch is None:
            return Placement(candidate, choice, None, failure)
        candidate = Candidate(candidate.view, candidate.cached_tokens + fetch.num_tokens)
        return Placement(candidate, fetch.explain(choice), fetch.source, failure)

    def _ask(
        self, tracked: Tracked, candidates: Candidates
    ) -> tuple[Candidate, Choice, PolicyFailed | None]:
        request = tracked.request
        num_tokens = tracked.prompt_tokens + len(tracked.tokens)
        try:
            choice = self.policy.choose(request, num_tokens, candidates)
        except Exception as error:  # the one exception of rule M5
            return self._fall_back(tracked, candidates, f"{type(error).__name__}: {error}")
        candidate = candidates.find(choice.replica)
        if candidate is not None:
            return candidate, choice, None
        reason = f"it chose {choice.replica}, which is no candidate"
        return self._fall_back(tracked, candidates, reason)

    def _fall_back(
        self, tracked: Tracked, candidates: Candidates, reason: str
    ) -> tuple[Candidate, Choice, PolicyFailed | None]:
        failure = PolicyFailed(self.policy.name, reason)
        self.policy = LeastRequests()
        candidate, choice, _ = self._ask(tracked, candidates)
        return candidate, choice, failure
