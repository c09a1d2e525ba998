"""lmetric: prompt tokens to compute x requests there, as published; a baseline.

    cost = (prefill tokens waiting there + mine not cached there) x (requests there + mine)

A product needs no weights (Zhang et al., "LMetric: Simple is Better - Multiplication May Be All
You Need for LLM Request Scheduling", arXiv 2603.15202).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.weighing import cheapest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Choice, Random
    from headrace.types import Request, Tokens


class LMetric:
    """A Policy."""

    name: Final = "lmetric"

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        costs = [
            float((view.prefill_tokens + prompt_tokens - cached) * (view.outstanding + 1))
            for view, cached in candidates
        ]
        return cheapest(candidates, costs, self._random, _reason)


def _reason(chosen: Candidate, cost: float) -> str:
    return f"{chosen.view.outstanding + 1} requests x prompt tokens to compute: {cost:.0f}"
