"""The policy behind a guard: whatever a policy does, requests find a replica (fail open)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.balancer.least_requests import LeastRequests
from headrace.core.router.events import PolicyFailed

if TYPE_CHECKING:
    from headrace.core.balancer.candidates import Candidates
    from headrace.core.balancer.policy import Candidate, Choice, Policy
    from headrace.core.router.requests import Tracked


class Chooser:
    """Asks the policy; after its first failure never again, but least_requests instead."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def choose(
        self, tracked: Tracked, candidates: Candidates
    ) -> tuple[Candidate, Choice, PolicyFailed | None]:
        """Return one of ``candidates`` (at least one), why, and what went wrong, if something."""
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
        candidate, choice, _ = self.choose(tracked, candidates)
        return candidate, choice, failure
