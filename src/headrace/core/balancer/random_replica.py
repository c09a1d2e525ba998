"""random: any replica, each as likely. A baseline: it sees neither load nor caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.policy import Choice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Random
    from headrace.types import Request, Tokens


class RandomReplica:
    """A Policy."""

    name: Final = "random"

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        chosen = candidates[self._random.below(len(candidates))]
        return Choice(chosen.view.replica, f"by chance, 1 of {len(candidates)}")
