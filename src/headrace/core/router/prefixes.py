"""What the Router believes of each replica's prefix cache, and how well founded that is.

Changes are numbered from 1 in each life of a replica::

    APPROXIMATE --change 1, or a listing--> EXACT --gap, or found wanting--> DEGRADED
                                            EXACT <--listing, or right again--'

A replica of which nothing was heard is taken to hold the latest prompts sent there. After a gap
its entries are kept, since most are still true, and a listing is asked for; one that cannot give
any (foreign servers) is taken to hold what is sent there, too. What a replica says that it found in
its cache is held against what was predicted: where claims prove too large, they are believed in the
measured share only, until they come true again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from headrace.core.balancer.prefix_index import PrefixIndex
from headrace.core.router.events import KnowledgeChanged, WantSnapshot
from headrace.core.router.knowledge import Feed, Heard, KvKnowledge, Truth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.router.events import KvListed, KvReported, ReplicaReady, RouterEffect
    from headrace.core.router.requests import Attempt
    from headrace.types import BlockKey, ReplicaId, Seconds, Tokens

LOOKS = 20
"""Into the index for a prompt: of 4,096 tokens in 256 blocks, those who have most are found to the
block at three different depths or so, the others at least so far."""

LOOKS_ASSUMED = 7
"""The same, where all is assumed: the longest beginning to a chunk or two of 32."""

ASSUMED_BLOCKS = 31_250
"""Held by a replica that does not say how many blocks it has (the bound llm-d's router uses)."""


@dataclass(slots=True)
class _Account:
    """What is known of one replica's cache. ``said``: to those who look at it."""

    max_blocks: int
    block_size: Tokens
    feed: Feed
    truth: Truth = field(default_factory=Truth)
    said: KvKnowledge = KvKnowledge.APPROXIMATE

    @property
    def knowledge(self) -> KvKnowledge:
        if not self.feed.is_heard:
            return KvKnowledge.APPROXIMATE
        if self.feed.missed or self.truth.in_doubt:
            return KvKnowledge.DEGRADED
        return KvKnowledge.EXACT

    @property
    def due(self) -> Seconds:
        """When time will change what is known, if nothing else does before."""
        asks_at = self.feed.asks_at if self.feed.missed else inf
        return min(asks_at, self.truth.forgets_at)

    @property
    def reason(self) -> str:
        """Why it is not known better, or that it is known well."""
        truth = self.truth
        if self.feed.missed:
            return self.feed.missed
        if truth.in_doubt:
            return f"{truth.discount:.0%} of what {len(truth)} requests should find was there"
        return f"its changes are followed from number {self.feed.number} on"


class Prefixes:
    """The index, kept by events. Without ``discounts`` all that it claims is believed."""

    def __init__(self, *, discounts: bool = True) -> None:
        self.index = PrefixIndex()
        self._accounts: dict[ReplicaId, _Account] = {}
        self._unsettled: dict[ReplicaId, None] = {}  # may be worth more or less than was said
        self._doubtful: dict[ReplicaId, Seconds] = {}  # when time changes what they are worth
        self._due: Seconds = inf  # the first of these
        self._looks = LOOKS_ASSUMED
        self._discounts = discounts

    def add(self, event: ReplicaReady) -> None:
        """Take in a replica whose cache is empty."""
        self.drop(event.replica)
        self.index.add(event.replica)
        facts = event.facts
        self._accounts[event.replica] = _Account(
            max_blocks=facts.num_blocks or ASSUMED_BLOCKS,
            block_size=facts.block_size or 1,
            feed=Feed(event.epoch, lists=facts.lists_blocks),
        )

    def drop(self, replica: ReplicaId) -> None:
        """Forget a replica and all it held."""
        self.index.drop(replica)
        self._accounts.pop(replica, None)
        self._unsettled.pop(replica, None)
        self._doubtful.pop(replica, None)

    def knowledge(self, replica: ReplicaId) -> KvKnowledge:
        """Return how well a known replica's cache is known."""
        return self._accounts[replica].knowledge

    def accuracy(self, replica: ReplicaId) -> float | None:
        """Return how right the latest predictions of a known replica were, 0 to 1."""
        return self._accounts[replica].truth.accuracy

    def discount(self, replica: ReplicaId) -> float:
        """Return what share of a claim about a known replica is to be believed."""
        return self._accounts[replica].truth.discount if self._discounts else 1.0

    def change(self, event: KvReported) -> None:
        """Take a change of a known replica's cache."""
        heard = self._accounts[event.replica].feed.change(event.epoch, event.number)
        if heard is Heard.OLD:
            return
        self._note(event.replica)
        if heard is Heard.ANEW:
            self.index.replace(event.replica, ())
        self.index.store(event.replica, event.stored)
        self.index.remove(event.replica, event.removed)

    def listing(self, event: KvListed) -> None:
        """Take the whole content of a known replica's cache."""
        heard = self._accounts[event.replica].feed.listing(event.epoch, event.number)
        if heard is not Heard.OLD:
            self._note(event.replica)
            self.index.replace(event.replica, event.keys)

    def latest(self, replica: ReplicaId, number: int) -> None:
        """A known replica says that its latest change has this number."""
        feed = self._accounts[replica].feed
        feed.latest(number)
        if feed.missed:
            self._unsettled[replica] = None

    def compare(self, attempt: Attempt, found: Tokens | None, now: Seconds) -> None:
        """A known replica says what it had of an attempt's prompt, None if it does not say."""
        if attempt.claimed is None or found is None:
            return
        account = self._accounts[attempt.replica]
        account.truth.note(attempt.claimed, found, account.block_size, now)
        attempt.claimed = None
        self._unsettled[attempt.replica] = None

    def settle(self, now: Seconds, effects: list[RouterEffect]) -> None:
        """Ask for what is missing, and say whose cache is known better or worse than before."""
        if now >= self._due:
            self._unsettled.update(dict.fromkeys(self._doubtful))
        if not self._unsettled:
            return
        for replica in self._unsettled:
            self._settle(replica, self._accounts[replica], now, effects)
        self._unsettled.clear()
        self._due = min(self._doubtful.values(), default=inf)

    def send(self, replica: ReplicaId, keys: tuple[BlockKey, ...]) -> tuple[BlockKey, ...]:
        """Note a prompt sent there; return what to give to ``index.unexpect`` later."""
        account = self._accounts[replica]
        if account.feed.is_uncertain:
            self.index.assume(replica, keys, limit=account.max_blocks)
        if not account.feed.is_heard:
            return ()
        self.index.expect(replica, keys)
        return keys

    def match(self, keys: Sequence[BlockKey]) -> dict[ReplicaId, int]:
        """Return how many of the first blocks each replica has, or less, where it is any."""
        return self.index.match(keys, self._looks)

    def _settle(
        self, replica: ReplicaId, account: _Account, now: Seconds, effects: list[RouterEffect]
    ) -> None:
        account.truth.forget(now)
        if account.feed.wants_listing(now):
            effects.append(WantSnapshot(replica))
        knowledge = account.knowledge
        if knowledge is not account.said:
            account.said = knowledge
            effects.append(KnowledgeChanged(replica, knowledge, account.reason))
        self._doubtful.pop(replica, None)
        if account.feed.missed or account.truth.in_doubt:
            self._doubtful[replica] = account.due

    def _note(self, replica: ReplicaId) -> None:
        """It tells of its blocks."""
        self._unsettled[replica] = None
        self._looks = LOOKS
