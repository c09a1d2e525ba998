"""sglang_cache_aware: the default of SGLang's gateway, as published; a baseline.

    unbalanced = most - fewest requests > 32 and most > 1.1 x fewest
    unbalanced:                       the fewest requests
    else, over half the prompt sent:  where the longest beginning of it went
    else:                             the fewest requests

sgl-model-gateway/src/policies/cache_aware.rs (sgl-project/sglang, August 2026), without KV events,
which are an option there. Its tree holds text, ours digests of blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.policy import Choice
from headrace.core.balancer.sent import Sent
from headrace.core.balancer.weighing import fewest_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Random, ReplicaView
    from headrace.types import Request, Tokens

CACHE_THRESHOLD = 0.5  # of the prompt
BALANCE_ABSOLUTE = 32  # requests
BALANCE_RELATIVE = 1.1


class SglangCacheAware:
    """A Policy."""

    name: Final = "sglang_cache_aware"

    def __init__(self, random: Random) -> None:
        self._random = random
        self._sent = Sent()

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        keys, depths = self._sent.depths(request, candidates)
        view, reason = self._pick(candidates, len(keys), depths)
        self._sent.note(view, keys)
        return Choice(view.replica, reason)

    def _pick(
        self, candidates: Sequence[Candidate], num_keys: int, depths: Sequence[int]
    ) -> tuple[ReplicaView, str]:
        loads = [candidate.view.outstanding for candidate in candidates]
        most, fewest = max(loads), min(loads)
        if most - fewest > BALANCE_ABSOLUTE and most > BALANCE_RELATIVE * fewest:
            reason = f"unbalanced, {fewest} to {most} requests: the fewest"
            return fewest_requests(candidates, self._random), reason
        deepest = max(depths)
        if deepest > CACHE_THRESHOLD * num_keys:
            reason = f"{deepest} of {num_keys} blocks were sent there before"
            return candidates[depths.index(deepest)].view, reason
        reason = f"{deepest} of {num_keys} blocks known: the fewest requests"
        return fewest_requests(candidates, self._random), reason
