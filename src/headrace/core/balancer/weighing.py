"""What policies do with costs: find the lowest, let chance decide among equals, and say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.balancer.policy import Choice, Score

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.core.balancer.policy import Candidate, Random, ReplicaView


def lowest(costs: Sequence[float], random: Random) -> int:
    """Return the index of the lowest cost; among equals each is as likely."""
    least = min(costs)
    equals = [index for index, cost in enumerate(costs) if cost == least]
    return equals[0] if len(equals) == 1 else equals[random.below(len(equals))]


def cheapest(
    candidates: Sequence[Candidate],
    costs: Sequence[float],
    random: Random,
    reason: Callable[[Candidate, float], str],
) -> Choice:
    """Return the choice of the lowest cost, with all costs for people to see."""
    index = lowest(costs, random)
    scores = tuple(
        Score(view.replica, cost, cached)
        for (view, cached), cost in zip(candidates, costs, strict=True)
    )
    chosen = candidates[index]
    return Choice(chosen.view.replica, reason(chosen, costs[index]), scores)


def fewest_requests(candidates: Sequence[Candidate], random: Random) -> ReplicaView:
    """Return the replica with the fewest requests; among equals each is as likely."""
    index = lowest([candidate.view.outstanding for candidate in candidates], random)
    return candidates[index].view


def fair_share(candidates: Sequence[Candidate], slack: float) -> int:
    """Return the most requests that one may have, so that none is above ``slack`` x the mean.

    The request to be placed counts; at least one of ``candidates`` has less (Mirrokni, Thorup,
    Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018).
    """
    total = 1 + sum(candidate.view.outstanding for candidate in candidates)
    return int(-(-slack * total // len(candidates)))
