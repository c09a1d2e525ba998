"""Policies by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.least_requests import LeastRequests
from headrace.core.balancer.predicted_ttft import PredictedTtft
from headrace.core.balancer.round_robin import RoundRobin
from headrace.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.core.balancer.policy import Policy

POLICIES: Final[Mapping[str, Callable[[], Policy]]] = {
    PredictedTtft.name: PredictedTtft,
    LeastRequests.name: LeastRequests,
    RoundRobin.name: RoundRobin,
}


def build_policy(name: str) -> Policy:
    """Return a new policy. Raises UsageError with all names, the nearest first."""
    build = POLICIES.get(name)
    if build is None:
        names = sorted(POLICIES, key=lambda known: -_likeness(name, known))
        raise UsageError(f"there is no policy {name!r}; did you mean {', '.join(names)}?")
    return build()


def _likeness(left: str, right: str) -> float:
    """Return the share of letter pairs that two words have in common (Dice)."""
    pairs = [{word[i : i + 2] for i in range(len(word) - 1)} for word in (left.lower(), right)]
    return 2 * len(pairs[0] & pairs[1]) / max(1, len(pairs[0]) + len(pairs[1]))
