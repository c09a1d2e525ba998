"""llm_d_scores: the older default of llm-d's endpoint picker, as published; a baseline.

    score = 3 x share of the prompt cached + 2 x shortness of the queue + 2 x free share of KV

The queue counts requests without a first token, 1 for the shortest and 0 for the longest.
config/loader/defaults.go of llm-d/llm-d-router; there the figures are scraped, here they are
counted when requests are sent and end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.weighing import cheapest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Choice, Random, ReplicaView
    from headrace.types import Request, Tokens

PREFIX, QUEUE, KV = 3.0, 2.0, 2.0


class LlmDScores:
    """A Policy."""

    name: Final = "llm_d_scores"

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy. Scores are shown below zero, since the lowest cost wins."""
        queues = [view.outstanding - view.decoding for view, _ in candidates]
        longest, spread = max(queues), max(queues) - min(queues)
        costs = [
            -PREFIX * cached / max(1, prompt_tokens)
            - QUEUE * ((longest - queue) / spread if spread else 1.0)
            - KV * (1.0 - _used(view))
            for (view, cached), queue in zip(candidates, queues, strict=True)
        ]
        return cheapest(candidates, costs, self._random, _reason)


def _used(view: ReplicaView) -> float:
    capacity = view.facts.num_blocks * view.facts.block_size
    return min(1.0, view.context_tokens / capacity) if capacity else 0.0


def _reason(chosen: Candidate, cost: float) -> str:
    return f"score {-cost:.3f} of {PREFIX + QUEUE + KV:g}, {chosen.cached_tokens} tokens cached"
