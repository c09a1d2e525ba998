"""predicted_ttft: where the first token comes soonest, counting what it costs the others.

Cost in seconds = time to my first token there + HARM * (what I do to each stream there)::

    work    = uncached prompt tokens sent there and not answered yet + mine
    steps   = work / (max_num_batched_tokens - decodes), rounded up
    ttft    = steps * (a + c * decodes) + b * work + wait for room
    my harm = decodes * (b * my uncached tokens + c * TYPICAL_OUTPUT)

a, b, c: core/costs/step_time.py. Load is what this router sent and has not seen end, so that two
decisions in one report period never see the same numbers. Costs closer than TOLERANCE are equal
(the prediction is no better): among equals the fewest requests win, then rendezvous hashing on
the prompt's first block, so that gateways agree without talking and equal prefixes meet.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from operator import itemgetter
from typing import TYPE_CHECKING

from headrace.core.balancer.candidates import as_candidates
from headrace.core.balancer.policy import Choice, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, ReplicaView
    from headrace.types import ReplicaId, Request, Seconds, Tokens

HARM = 0.1
"""What a second that another stream waits is worth, in seconds of mine.

On 2,500 requests of the Mooncake conversation trace and 8 simulated H100 (8-billion model), the
mean TTFT is within 3 % from 0 to 0.3, and the more the harm counts the shorter whole answers are
(p95 of E2E 9.9, 9.8, 9.5, 8.8 s for 0, 0.02, 0.1, 0.3).
"""

TYPICAL_OUTPUT = 128  # tokens that a stream still has to go, where nobody knows
TOLERANCE = 0.05  # of the lowest cost
BATCHED_TOKENS = 2048  # in a step of a replica that does not say
MAX_PRICED = 16  # candidates
SAMPLE = 6
"""Of more: those that hold most of the prompt, and of the others each time the next few. The best
of many is little better than the best of these (Mitzenmacher 2001): with 64 simulated H100, 4,000
requests of 96 prefixes at 500 a second, 6, 8 and 16 have the same TTFT (p95 0.11 s)."""

_COST = itemgetter(1)  # of a Score


def seconds_to_first_token(view: ReplicaView, uncached: Tokens, context: Tokens) -> Seconds:
    """Return the time until a request that comes now has its first token.

    ``uncached`` of its ``context`` prompt tokens must be computed.
    """
    facts, (a, b, c) = view.facts, view.costs
    decodes, present = view.decoding, view.outstanding
    work = view.prefill_tokens + (uncached or 1)
    room = (facts.max_num_batched_tokens or BATCHED_TOKENS) - decodes
    steps = -(-work // room) if room > 1 else work
    seconds = steps * (a + c * decodes) + b * work
    capacity = facts.num_blocks * facts.block_size
    surplus = view.context_tokens + context - capacity if capacity else 0
    one_more = present + 1 - facts.max_num_seqs if facts.max_num_seqs else 0
    if present and (surplus > 0 or one_more > 0):
        share = max(surplus / max(view.context_tokens, 1), one_more / present)
        seconds += share * TYPICAL_OUTPUT * (a + c * decodes)
    return seconds


def harm_to_others(view: ReplicaView, uncached: Tokens) -> Seconds:
    """Return how long all streams there together wait for my prompt and my tokens."""
    _, b, c = view.costs
    return view.decoding * (b * uncached + c * TYPICAL_OUTPUT)


class PredictedTtft:
    """A Policy."""

    name = "predicted_ttft"

    def __init__(self) -> None:
        self._turn = 0

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        if len(candidates) > MAX_PRICED:
            candidates = as_candidates(candidates).few(SAMPLE, self._turn)
            self._turn += SAMPLE // 2
        scores, costs, times = [], [], []
        for view, cached in candidates:
            uncached = prompt_tokens - cached
            cost = seconds = seconds_to_first_token(view, uncached, prompt_tokens)
            if view.decoding:
                cost += HARM * harm_to_others(view, uncached)
            scores.append(Score(view.replica, cost, cached))
            costs.append(cost)
            times.append(seconds)
        limit = min(costs) * (1 + TOLERANCE)
        equals = [index for index, cost in enumerate(costs) if cost <= limit]
        index = equals[0] if len(equals) == 1 else self._break_tie(request, candidates, equals)
        reason = _reason(candidates[index].view, times[index], prompt_tokens, scores, index)
        return Choice(scores[index].replica, reason, tuple(scores), times[index])

    def _break_tie(
        self, request: Request, candidates: Sequence[Candidate], equals: Sequence[int]
    ) -> int:
        fewest = min(candidates[index].view.outstanding for index in equals)
        first_block = request.chain[0] if request.chain else b""
        if not first_block:
            self._turn += 1
            first_block = self._turn.to_bytes(8, "little")
        seed = int.from_bytes(first_block[:8], "little")
        return max(
            (index for index in equals if candidates[index].view.outstanding == fewest),
            key=lambda index: _rendezvous(seed, candidates[index].view.replica),
        )


def _reason(
    view: ReplicaView,
    seconds: Seconds,
    prompt_tokens: Tokens,
    scores: Sequence[Score],
    chosen: int,
) -> str:
    before = f", {view.prefill_tokens} before mine" if view.prefill_tokens else ""
    cached = scores[chosen].cached_tokens
    reason = f"{seconds:.3g} s here ({cached} of {prompt_tokens} tokens cached{before})"
    if len(scores) == 1:
        return f"{reason}; no other"
    second = min((*scores[:chosen], *scores[chosen + 1 :]), key=_COST)
    return f"{reason}; cost {scores[chosen].cost:.3g}, next best {second.replica} {second.cost:.3g}"


def _rendezvous(seed: int, replica: ReplicaId) -> int:
    """Return the weight of a replica for a prefix: any two replicas' order is as good as random.

    The multiplier is that of SplitMix64 (Steele, Lea, Flood 2014).
    """
    mixed = ((seed ^ _number_of(replica)) * 0xBF58476D1CE4E5B9) & 0xFFFF_FFFF_FFFF_FFFF
    mixed ^= mixed >> 31
    return (mixed * 0x94D049BB133111EB) & 0xFFFF_FFFF_FFFF_FFFF


@lru_cache(maxsize=1024)
def _number_of(replica: ReplicaId) -> int:
    return int.from_bytes(sha256(replica.encode()).digest()[:8], "little")
