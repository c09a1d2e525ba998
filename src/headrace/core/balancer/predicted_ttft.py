"""predicted_ttft: where the first token comes soonest, counting what it costs the others.

Cost in seconds = my time to the first token there
                + WORK_PRICE * busy * b * what I lack there and have elsewhere
                + HARM * what I do to all streams there::

    ttft  = steps * (a + c * decodes) + b * (prompt tokens sent there and not answered yet + mine)
            + wait for room
    steps = prompt tokens of all that / (max_num_batched_tokens - decodes), rounded up
    busy  = share of replicas where prompts wait
    harm  = decodes * (b * mine + c * TYPICAL_OUTPUT)

a, b, c: core/costs/step_time.py; replicas whose speed is about the same are taken to be the same,
since what is left are errors of the fit. Load is what this router sent and has not seen end, so
that two decisions in one report period never see the same numbers.

Work that is done twice has a price because whoever comes later waits for it: a policy that looks
only at my first token leaves a prefix as soon as its holder is busy, exactly under load. A **hot**
prefix is copied early instead: what I lack is paid by those who will use it as well, as many as
came lately (heat.py), shared by the replicas that then have it.

Costs closer than TOLERANCE are equal (the prediction is no better): among equals the fewest
requests win, then rendezvous hashing on the prompt's first block, so that gateways agree without
talking and equal prefixes meet; prompts without a block go anywhere, by chance.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.core.balancer.candidates import as_candidates
from headrace.core.balancer.draws import Draws, rendezvous
from headrace.core.balancer.heat import Heat
from headrace.core.balancer.homes import DEFAULT_BLOCK
from headrace.core.balancer.policy import Choice, Score
from headrace.core.costs.step_time import StepCosts
from headrace.types import block_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Random, ReplicaView
    from headrace.types import Request, Seconds, Tokens

HARM = 0.05
"""What a second that one stream waits is worth, in seconds of mine. More makes answers quicker and
the slowest first tokens slower: prompts queue where nobody decodes."""

WORK_PRICE = 10.0
"""What a second of computing twice is worth where all replicas have prompts waiting, in seconds of
mine. It is more than one because others come before the queue that it makes is gone.

Both were found with 1,000 requests at a time of the Mooncake conversation trace near saturation;
benchmarks/results/policies.md has what they do there, and elsewhere.
"""

ALIKE = 0.25  # of the mean time for a prompt token: replicas closer to it are one kind
TYPICAL_OUTPUT = 128  # tokens that a stream still has to go, where nobody knows
TOLERANCE = 0.02  # of the lowest cost
BATCHED_TOKENS = 2048  # in a step of a replica that does not say
MAX_PRICED = 16  # candidates
SAMPLE = 6
"""Of more: those that hold most of the prompt, and of the others a few from anywhere. The best
of many is little better than the best of these (Mitzenmacher 2001): with 64 simulated H100, 4,000
requests of 96 prefixes at 500 a second, 6, 8 and 16 have the same TTFT (p95 0.11 s)."""

_COST = itemgetter(1)  # of a Score
_CACHED = itemgetter(1)  # of a Candidate


def seconds_to_first_token(
    view: ReplicaView, uncached: Tokens, context: Tokens, costs: StepCosts | None = None
) -> Seconds:
    """Return the time until a request that comes now has its first token.

    ``uncached`` of its ``context`` prompt tokens must be computed. ``costs``: else the replica's.
    """
    facts, (a, b, c) = view.facts, costs or view.costs
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


class Copy(NamedTuple):
    """What one more copy of the prompt's known part is about.

    ``most``: how much of it one replica has. ``users``: those that will use a copy, me included.
    """

    most: Tokens
    users: float
    busy: float  # share of replicas where prompts wait

    def price(self, costs: StepCosts, cached: Tokens) -> Seconds:
        """Return what making one costs, where ``cached`` tokens are there.

        The other users pay for their shares, of what I wait for it too.
        """
        mine = 1.0 / self.users
        missing = costs.prefill_token * (self.most - cached)
        return missing * (WORK_PRICE * self.busy * mine - (1.0 - mine))


NOTHING_KNOWN = Copy(0, 1.0, 0.0)
"""Nobody has any of the prompt: there is nothing to copy."""


def harm_to_others(view: ReplicaView, uncached: Tokens, costs: StepCosts) -> Seconds:
    """Return how long all streams there together wait for my prompt and my tokens."""
    work = costs.prefill_token * uncached + costs.output_token * TYPICAL_OUTPUT
    return view.decoding * work


def costs_of(candidates: Sequence[Candidate]) -> list[StepCosts]:
    """Return the costs to reckon with: the mean for those near it, else a replica's own."""
    all_costs = [view.costs for view, _ in candidates]
    number = len(all_costs)
    if all_costs.count(all_costs[0]) == number:
        return all_costs  # as before foreign replicas, of which nothing is known
    mean = StepCosts(*(sum(column) / number for column in zip(*all_costs, strict=True)))
    near = ALIKE * mean.prefill_token
    return [
        mean if abs(costs.prefill_token - mean.prefill_token) <= near else costs
        for costs in all_costs
    ]


class PredictedTtft:
    """A Policy."""

    name: Final = "predicted_ttft"

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Draws()
        self._heat = Heat()

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        every = as_candidates(candidates)
        if len(every) > MAX_PRICED:
            shown = every.few(SAMPLE, self._random.below(len(every)))
        else:
            shown = every.pairs()
        copy = self._copy(request, shown)
        most = copy.most
        scores: list[Score] = []
        seconds: list[Seconds] = []
        for (view, cached), costs in zip(shown, costs_of(shown), strict=True):
            uncached = prompt_tokens - cached
            ttft = cost = seconds_to_first_token(view, uncached, prompt_tokens, costs)
            if cached < most:
                cost += copy.price(costs, cached)
            if view.decoding:
                cost += HARM * harm_to_others(view, uncached, costs)
            seconds.append(ttft)
            scores.append(Score(view.replica, cost, cached))
        prices = [score.cost for score in scores]
        lowest = min(prices)
        limit = lowest + TOLERANCE * abs(lowest)
        equals = [index for index, price in enumerate(prices) if price <= limit]
        index = equals[0] if len(equals) == 1 else self._break_tie(request, shown, equals)
        view, all_scores = shown[index].view, tuple(scores)
        ttft = seconds[index]
        reason = _Reason(all_scores, index, ttft, prompt_tokens, view.prefill_tokens, copy)
        return Choice(view.replica, reason, all_scores, ttft)

    def _copy(self, request: Request, candidates: Sequence[Candidate]) -> Copy:
        """One is used by its share of those that come for this prefix."""
        most = max(candidates, key=_CACHED).cached_tokens
        if not most:
            return NOTHING_KNOWN
        busy = sum([view.prefill_tokens > 0 for view, _ in candidates]) / len(candidates)
        if not request.chain:
            return Copy(most, 1.0, busy)
        holders = [view for view, cached in candidates if cached == most]
        depth = most // (holders[0].facts.block_size or DEFAULT_BLOCK)
        prefix = request.chain[min(max(depth, 1), len(request.chain)) - 1]
        return Copy(most, max(1.0, self._heat.note(prefix) / (len(holders) + 1)), busy)

    def _break_tie(
        self, request: Request, candidates: Sequence[Candidate], equals: Sequence[int]
    ) -> int:
        present = [candidates[index].view.outstanding for index in equals]
        fewest = min(present)
        if present.count(fewest) == 1 and request.chain:
            return equals[present.index(fewest)]
        key = block_key(request.chain[0]) if request.chain else self._random.below(1 << 64)
        return max(
            [index for index, load in zip(equals, present, strict=True) if load == fewest],
            key=lambda index: rendezvous(key, candidates[index].view.replica),
        )


class _Reason(NamedTuple):
    """Why ``scores[chosen]`` was best. ``before``: prompt tokens that waited there."""

    scores: tuple[Score, ...]
    chosen: int
    ttft: Seconds
    prompt_tokens: Tokens
    before: Tokens
    copy: Copy

    def __str__(self) -> str:
        scores, best = self.scores, self.scores[self.chosen]
        before = f", {self.before} before mine" if self.before else ""
        cached = f"{best.cached_tokens} of {self.prompt_tokens} tokens cached"
        reason = f"{self.ttft:.3g} s here ({cached}{before})"
        if len(scores) == 1:
            reason += "; no other"
        else:
            others = (*scores[: self.chosen], *scores[self.chosen + 1 :])
            second = min(others, key=_COST)
            reason += f"; cost {best.cost:.3g}, next best {second.replica} {second.cost:.3g}"
        most, users, _ = self.copy
        if users > 1 and best.cached_tokens < most:
            reason += f"; a copy of {most} tokens for {users:.1f}"
        return reason
