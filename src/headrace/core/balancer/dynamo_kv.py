"""dynamo_kv: the cost of NVIDIA Dynamo's KV router, as published; a baseline.

    cost = prefill blocks waiting there + my blocks not cached there + blocks of all requests there

lib/kv-router/src/scheduling/selector/default.rs (ai-dynamo/dynamo 1.4), with its defaults: overlap
counts in full, no decay, temperature 0, equals by chance. Blocks that requests share are counted
once there; the Router does not know them, and counts each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.homes import DEFAULT_BLOCK
from headrace.core.balancer.weighing import cheapest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Choice, Random
    from headrace.types import Request, Tokens


class DynamoKv:
    """A Policy."""

    name: Final = "dynamo_kv"

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        costs = [_blocks(candidate, prompt_tokens) for candidate in candidates]
        return cheapest(candidates, costs, self._random, _reason)


def _blocks(candidate: Candidate, prompt_tokens: Tokens) -> float:
    view, cached = candidate
    size = view.facts.block_size or DEFAULT_BLOCK
    prefill = max(0, view.prefill_tokens + prompt_tokens - cached)
    return (prefill + view.context_tokens) / size


def _reason(chosen: Candidate, cost: float) -> str:
    return f"{cost:.4g} blocks to compute and in use, {chosen.cached_tokens} tokens cached"
