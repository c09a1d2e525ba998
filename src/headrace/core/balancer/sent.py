"""Sent: which prompts went where, for policies that believe nothing else.

What published gateways call an approximate prefix tree: nobody tells them what a cache holds, so
they take it that a replica has the latest prompts sent there. Chained digests name whole prefixes,
so the tree is a dictionary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.balancer.prefix_index import PrefixIndex
from headrace.types import block_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, ReplicaView
    from headrace.types import BlockKey, ReplicaId, Request

ASSUMED_BLOCKS = 31_250
"""Held by a replica that does not say how many blocks it has (the bound llm-d's router uses)."""

MAX_REPLICAS = 1024


class Sent:
    """Bounded: MAX_REPLICAS, each with as many blocks as its cache has."""

    def __init__(self, *, max_replicas: int = MAX_REPLICAS) -> None:
        self._max_replicas = max_replicas
        self._index = PrefixIndex()
        self._lives: dict[ReplicaId, int] = {}  # the last seen comes last

    def __len__(self) -> int:
        """Distinct blocks."""
        return len(self._index)

    def depths(
        self, request: Request, candidates: Sequence[Candidate]
    ) -> tuple[list[BlockKey], list[int]]:
        """Return the prompt's keys, and how many of the first each candidate was sent before."""
        keys = [block_key(digest) for digest in request.chain]
        known = self._index.match(keys)
        lives = self._lives
        depths = [
            known.get(view.replica, 0) if lives.get(view.replica) == view.life else 0
            for view, _ in candidates
        ]
        return keys, depths

    def note(self, view: ReplicaView, keys: Sequence[BlockKey]) -> None:
        """The prompt goes there now. A replica that was restarted has lost what it had."""
        replica = view.replica
        if self._lives.pop(replica, None) != view.life:
            self._index.add(replica)
        self._lives[replica] = view.life
        while len(self._lives) > self._max_replicas:
            oldest = next(iter(self._lives))
            del self._lives[oldest]
            self._index.drop(oldest)
        self._index.assume(replica, keys, limit=view.facts.num_blocks or ASSUMED_BLOCKS)
