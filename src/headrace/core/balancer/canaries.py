"""Canaries: a fixed share of requests goes to replicas that are being tried, the rest elsewhere.

Which requests is decided by a hash of the session, or of the request where none is named, so that
a conversation stays on one side. Canary i gets the hashes between the sum of the shares before it
and that sum with its own. A canary that cannot take a request leaves it to the others; only where
no other replica can, canaries take what is not theirs.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from headrace.core.balancer.candidates import as_candidates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Choice, Policy
    from headrace.types import ReplicaId, Request, Tokens

_POINTS = 2.0**64


class Canaries:
    """A Policy round another, whose name it bears."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._shares: dict[ReplicaId, float] = {}  # of all canaries ever seen: the scale stays

    @property
    def name(self) -> str:
        """The other's."""
        return self._policy.name

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        shown = as_candidates(candidates)
        if not shown.alike and any(each.view.facts.canary for each in shown):
            shown = as_candidates(self._side(request, shown))
        return self._policy.choose(request, prompt_tokens, shown)

    def _side(self, request: Request, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the one canary that the request falls to, or all others."""
        canaries = {each.view.replica: each for each in candidates if each.view.facts.canary}
        for replica, each in canaries.items():
            self._shares[replica] = each.view.facts.canary
        point, end = point_of(request), 0.0
        for replica in sorted(self._shares):
            end += self._shares[replica]
            if point < end:
                chosen = canaries.get(replica)
                if chosen is not None:
                    return [chosen]
                break
        return [each for each in candidates if not each.view.facts.canary] or candidates


def point_of(request: Request) -> float:
    """Return where a request lies between 0 and 1: equal for all of a tenant's session."""
    name = f"{request.tenant}\n{request.session}" if request.session else request.id
    return int.from_bytes(sha256(name.encode()).digest()[:8], "little") / _POINTS
