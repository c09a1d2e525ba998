"""prefix_tree: where most of the prompt was sent before, among those without too many requests.

It believes what it sent, not what replicas say they hold (sent.py), so it is what one has before
replicas that say nothing. Of equals the fewest requests win.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.policy import Choice
from headrace.core.balancer.sent import Sent
from headrace.core.balancer.weighing import fair_share, lowest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Random
    from headrace.types import Request, Tokens

SLACK = 1.25
"""Times the mean of requests: what a replica may have and still be asked."""

MARGIN = 4
"""A replica with so many requests less than half the mean is asked before all others: SLACK alone
leaves one of five without work for ever."""


class PrefixTree:
    """A Policy."""

    name: Final = "prefix_tree"

    def __init__(self, random: Random) -> None:
        self._random = random
        self._sent = Sent()

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        keys, depths = self._sent.depths(request, candidates)
        index, reason = self._pick(candidates, depths, len(keys))
        view = candidates[index].view
        self._sent.note(view, keys)
        return Choice(view.replica, reason)

    def _pick(
        self, candidates: Sequence[Candidate], depths: Sequence[int], num_keys: int
    ) -> tuple[int, str]:
        loads = [candidate.view.outstanding for candidate in candidates]
        emptiest = lowest(loads, self._random)
        if (2 * loads[emptiest] + 2 * MARGIN) * len(loads) < sum(loads):
            return emptiest, f"{loads[emptiest]} requests there, far below the mean"
        limit = fair_share(candidates, SLACK)
        below = [index for index, load in enumerate(loads) if load < limit]
        deepest = max(depths[index] for index in below)
        best = [index for index in below if depths[index] == deepest]
        index = best[lowest([loads[index] for index in best], self._random)]
        return index, f"{deepest} of {num_keys} blocks were sent there before"
