"""What the Router believes of each replica's prefix cache, and how well founded that is.

Changes are numbered from 1 without a gap::

    APPROXIMATE --change 1, or a listing--> EXACT --gap--> DEGRADED --listing--> EXACT

A replica of which nothing was heard is taken to hold the latest prompts sent there. After a gap
its entries are kept, since most are still true, and a listing is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from headrace.core.balancer.prefix_index import PrefixIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import ReplicaFacts
    from headrace.core.router.events import KvListed, KvReported
    from headrace.types import BlockKey, ReplicaId, Seconds

ASSUMED_BLOCKS = 31_250
"""Held by a replica that does not say how many blocks it has (the bound llm-d's router uses)."""

LISTING_PATIENCE = 5.0
"""Seconds until a listing that did not come is asked for again."""


class KvKnowledge(StrEnum):
    """How well a replica's prefix cache is known."""

    EXACT = "exact"
    DEGRADED = "degraded"  # a change was missed; a listing is on its way
    APPROXIMATE = "approximate"  # it says nothing: what was sent there


@dataclass(slots=True)
class _Account:
    """How far a replica's changes were followed."""

    max_blocks: int
    knowledge: KvKnowledge = KvKnowledge.APPROXIMATE
    number: int = 0
    asked_at: Seconds = 0.0


class Prefixes:
    """The index, kept by events."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self._accounts: dict[ReplicaId, _Account] = {}

    def add(self, replica: ReplicaId, facts: ReplicaFacts) -> None:
        """Take in a replica whose cache is empty."""
        self.index.add(replica)
        self._accounts[replica] = _Account(facts.num_blocks or ASSUMED_BLOCKS)

    def drop(self, replica: ReplicaId) -> None:
        """Forget a replica and all it held."""
        self.index.drop(replica)
        self._accounts.pop(replica, None)

    def knowledge(self, replica: ReplicaId) -> KvKnowledge:
        """Return how well a known replica's cache is known."""
        return self._accounts[replica].knowledge

    def change(self, event: KvReported, now: Seconds) -> bool:
        """Take a change of a known replica's cache; return whether a listing is wanted."""
        account = self._accounts[event.replica]
        if event.number <= account.number:
            return False  # said before, or part of a listing
        gap = event.number > account.number + 1
        account.number = event.number
        if account.knowledge is KvKnowledge.APPROXIMATE:
            self.index.replace(event.replica, ())
            account.knowledge = KvKnowledge.EXACT
        self.index.store(event.replica, event.stored)
        self.index.remove(event.replica, event.removed)
        waits = account.knowledge is KvKnowledge.DEGRADED
        if waits:
            gap = now >= account.asked_at + LISTING_PATIENCE
        if gap:
            account.knowledge, account.asked_at = KvKnowledge.DEGRADED, now
        return gap

    def listing(self, event: KvListed) -> None:
        """Take the whole content of a known replica's cache."""
        account = self._accounts[event.replica]
        if account.knowledge is KvKnowledge.EXACT and event.number < account.number:
            return
        account.knowledge, account.number = KvKnowledge.EXACT, event.number
        self.index.replace(event.replica, event.keys)

    def send(self, replica: ReplicaId, keys: tuple[BlockKey, ...]) -> tuple[BlockKey, ...]:
        """Note a prompt sent there; return what to give to ``index.unexpect`` later."""
        account = self._accounts[replica]
        if account.knowledge is KvKnowledge.APPROXIMATE:
            self.index.assume(replica, keys, limit=account.max_blocks)
            return ()
        self.index.expect(replica, keys)
        return keys

    def match(self, keys: Sequence[BlockKey]) -> dict[ReplicaId, int]:
        """Return how many of the first blocks each replica has, where it is any."""
        return self.index.match(keys) if keys else {}
