"""Weighted: any policy, over replicas of different capacity that others use as well.

It shows the policy each replica's load divided by its weight, with the requests that came past
this router in it, and a replica of twice the weight twice as often. So policies that look at load
even out load / weight, and those that take turns or draw give each its share. Replicas of one
weight and without other load are shown as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.core.balancer.candidates import as_candidates
from headrace.core.balancer.policy import Candidate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Choice, Policy, ReplicaView
    from headrace.types import Request, Tokens

MAX_PARTS = 8
"""The smallest of several replicas is shown so often at most, to come near the others' ratio."""

MAX_TIMES = 64  # that one replica is shown
NEAR = 0.05  # of a whole number: near enough


class Weighted:
    """A Policy round another, whose name it bears."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def name(self) -> str:
        """The other's."""
        return self._policy.name

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        if as_candidates(candidates).alike:
            return self._policy.choose(request, prompt_tokens, candidates)
        first = candidates[0].view.facts.weight
        equal = all(view.facts.weight == first for view, _ in candidates)
        if equal and not any(view.past_us for view, _ in candidates):
            return self._policy.choose(request, prompt_tokens, candidates)
        shown = [Candidate(_relative(view), cached) for view, cached in candidates]
        times = [1] * len(shown) if equal else _times([v.facts.weight for v, _ in candidates])
        turns = [shown[index] for index in _interleaved(times)]
        choice = self._policy.choose(request, prompt_tokens, turns)
        return choice._replace(
            scores=tuple({each.replica: each for each in choice.scores}.values())
        )


def _relative(view: ReplicaView) -> ReplicaView:
    """Return what the view would be of a replica of weight 1 that is as full."""
    weight, past_us = view.facts.weight, view.past_us

    def share(amount: int) -> int:
        return -(-amount * 1000 // round(weight * 1000))

    outstanding = view.outstanding + past_us
    return replace(
        view,
        outstanding=share(outstanding),
        decoding=share(view.decoding + past_us),
        prefill_tokens=share(view.prefill_tokens),
        context_tokens=share(view.context_tokens),
    )


def _times(weights: Sequence[float]) -> list[int]:
    """Return whole numbers in the ratio of ``weights`` or near it, as small as can be."""
    least = min(weights)
    for parts in range(1, MAX_PARTS + 1):
        exact = [parts * weight / least for weight in weights]
        numbers = [round(each) for each in exact]
        if all(abs(a - b) <= NEAR for a, b in zip(exact, numbers, strict=True)):
            break
    return [min(number, MAX_TIMES) for number in numbers]


def _interleaved(times: Sequence[int]) -> list[int]:
    """Return each index as often as it says, spread evenly (as nginx does for its turns)."""
    total, credits, order = sum(times), [0] * len(times), []
    for _ in range(total):
        credits = [credit + number for credit, number in zip(credits, times, strict=True)]
        index = credits.index(max(credits))
        credits[index] -= total
        order.append(index)
    return order
