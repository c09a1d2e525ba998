"""round_robin: each replica in turn. A baseline: it sees neither load nor caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.policy import Choice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate
    from headrace.types import Request, Tokens


class RoundRobin:
    """A Policy. Counts on over whoever is a candidate."""

    name: Final = "round_robin"

    def __init__(self) -> None:
        self._turn = 0

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        chosen = candidates[self._turn % len(candidates)]
        self._turn += 1
        return Choice(chosen.view.replica, f"its turn, 1 of {len(candidates)}")
