"""session_affinity: a session stays where it was, a new one goes where the fewest requests are.

Without a session the beginning of the prompt counts as one. It never leaves a replica because of
load: sessions that are busier than others make their replica busier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.core.balancer.homes import home_key
from headrace.core.balancer.policy import Choice
from headrace.core.balancer.weighing import fewest_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Random
    from headrace.types import ReplicaId, Request, Tokens

MAX_SESSIONS = 1 << 16
"""Remembered; the one that was silent for longest goes first."""


class SessionAffinity:
    """A Policy. Each gateway remembers for itself."""

    name: Final = "session_affinity"

    def __init__(self, random: Random, *, max_sessions: int = MAX_SESSIONS) -> None:
        self._random = random
        self._max_sessions = max_sessions
        self._homes: dict[int, ReplicaId] = {}  # the last used comes last

    @property
    def num_sessions(self) -> int:
        """Remembered."""
        return len(self._homes)

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """See Policy."""
        key = home_key(request, candidates[0].view)
        home = None if key is None else self._homes.pop(key, None)
        if any(candidate.view.replica == home for candidate in candidates):
            chosen, reason = home, "its session is there"
        else:
            chosen = fewest_requests(candidates, self._random).replica
            reason = "a new session: the fewest requests"
            if home is not None:
                reason = f"its session was at {home}, which takes none: the fewest requests"
        assert chosen is not None
        if key is not None:
            self._remember(key, chosen)
        return Choice(chosen, reason)

    def _remember(self, key: int, replica: ReplicaId) -> None:
        self._homes[key] = replica
        if len(self._homes) > self._max_sessions:
            del self._homes[next(iter(self._homes))]
