"""power_of_two: of two replicas drawn at random, the one with fewer requests.

The longest of n queues grows like log log n instead of log n, without looking at all of them, and
gateways that see the same loads do not all run to one place (Mitzenmacher, "The Power of Two
Choices in Randomized Load Balancing", 2001). Requests are counted when they are sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.weighing import cheapest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Choice, Random
    from headrace.types import Request, Tokens


class PowerOfTwo:
    """A Policy."""

    name: Final = "power_of_two"

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy. Only the two that were drawn have scores."""
        drawn = list(candidates)
        if len(drawn) > 2:
            drawn = self._two_of(candidates)
        costs = [float(candidate.view.outstanding) for candidate in drawn]
        return cheapest(drawn, costs, self._random, _reason)

    def _two_of(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        first = self._random.below(len(candidates))
        second = self._random.below(len(candidates) - 1)
        return [candidates[first], candidates[second + (second >= first)]]


def _reason(chosen: Candidate, cost: float) -> str:
    return f"{cost:.0f} requests there, the fewer of two drawn"
