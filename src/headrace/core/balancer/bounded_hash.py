"""bounded_hash: a session or prompt has one home, unless that has more than its share of requests.

Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018): no replica gets
more than SLACK x the mean of requests; what does not fit at home goes to the next in its order.
Here the order is that of rendezvous hashing instead of points on a ring: it needs no memory, and
what one replica turns away is spread over all others instead of falling on its neighbour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.draws import rendezvous
from headrace.core.balancer.homes import home_key
from headrace.core.balancer.policy import Choice
from headrace.core.balancer.weighing import fair_share, fewest_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Random
    from headrace.types import Request, Tokens

SLACK = 1.25
"""The c of the paper; 1.25 is what SGLang's gateway and HAProxy's users take."""


class BoundedHash:
    """A Policy. Gateways that see the same loads agree without talking."""

    name: Final = "bounded_hash"

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        key = home_key(request, candidates[0].view)
        if key is None:
            chosen = fewest_requests(candidates, self._random)
            return Choice(chosen.replica, "nothing to be recognised by: the fewest requests")
        order = sorted(
            (candidate.view for candidate in candidates),
            key=lambda view: -rendezvous(key, view.replica),
        )
        limit = fair_share(candidates, SLACK)
        place = next(n for n, view in enumerate(order) if view.outstanding < limit)
        if place == 0:
            return Choice(order[0].replica, "its home")
        return Choice(order[place].replica, f"{place} before it have {limit} requests or more")
