"""least_requests: the replica with the fewest requests. What the Router falls back to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.policy import Choice, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate
    from headrace.types import Request, Tokens


class LeastRequests:
    """A Policy. Equals take turns, so that the first replica is not worn out."""

    name: Final = "least_requests"

    def __init__(self) -> None:
        self._turn = 0

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        fewest = min(candidate.view.outstanding for candidate in candidates)
        equals = [each for each in candidates if each.view.outstanding == fewest]
        chosen = equals[self._turn % len(equals)]
        self._turn += 1
        scores = tuple(
            Score(each.view.replica, float(each.view.outstanding), each.cached_tokens)
            for each in candidates
        )
        return Choice(chosen.view.replica, f"{fewest} requests there, the fewest", scores)
