"""llm_d_sticky: llm-d's "sticky until saturated", as published; a baseline.

    sticky = replicas that hold at least 80 % of the prompt, else all
    if the first token would come there more than 14 s later than elsewhere: all
    of these the fewest prompt tokens to compute: waiting there + mine not cached

llm-d blog of 2026-08-17 and pkg/epp/framework/plugins of llm-d/llm-d-router. The time to the first
token is prompt tokens waiting over the speed of prefill, which here is each replica's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.weighing import cheapest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Choice, Random
    from headrace.types import Request, Seconds, Tokens

STICKY_SHARE = 0.8  # of the prompt
MAX_PENALTY: Seconds = 14.0


class LlmDSticky:
    """A Policy."""

    name: Final = "llm_d_sticky"

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy. Only those that it chose among have scores."""
        least = STICKY_SHARE * prompt_tokens
        sticky = [each for each in candidates if each.cached_tokens >= least]
        others = [each for each in candidates if each.cached_tokens < least]
        if not sticky or (others and _soonest(sticky) - _soonest(others) > MAX_PENALTY):
            sticky = list(candidates)
        costs = [float(view.prefill_tokens + prompt_tokens - cached) for view, cached in sticky]
        return cheapest(sticky, costs, self._random, _reason)


def _soonest(candidates: Sequence[Candidate]) -> Seconds:
    return min(view.prefill_tokens * view.costs.prefill_token for view, _ in candidates)


def _reason(chosen: Candidate, cost: float) -> str:
    return f"{cost:.0f} prompt tokens to compute there, {chosen.cached_tokens} cached"
