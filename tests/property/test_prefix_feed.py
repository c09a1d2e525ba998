"""Property: whatever becomes of the reports of a prefix cache on their way (lost, repeated, late,
in any order, from before a restart), the router's index is never called EXACT while it differs from
what the newest report describes, and it is the truth again once a listing has come.
"""

from __future__ import annotations

from typing import TypeAlias

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.router.events import (
    KnowledgeChanged,
    KvListed,
    KvReported,
    ReplicaReady,
    RouterEffect,
    WantSnapshot,
)
from headrace.core.router.knowledge import LISTING_PATIENCE, KvKnowledge
from headrace.core.router.prefixes import Prefixes
from headrace.types import BlockKey, ReplicaId

R0 = ReplicaId("r0")
KEYS = [BlockKey(key) for key in range(8)]
FACTS = ReplicaFacts(block_size=16, num_blocks=64)
Frame: TypeAlias = KvReported | KvListed
Place: TypeAlias = tuple[int, int]  # epoch, number of the change


class FeedStates(RuleBasedStateMachine):
    """One replica that tells the truth, and a wire that does what it likes."""

    @initialize()
    def start(self) -> None:
        self.prefixes = Prefixes()
        self.now = 0.0
        self.place: Place = (1, 0)
        self.keys: frozenset[BlockKey] = frozenset()
        self.history: dict[Place, frozenset[BlockKey]] = {self.place: self.keys}
        self.wire: list[Frame] = []
        self.newest: Place | None = None  # that the router has heard of in this connection
        self.said = KvKnowledge.APPROXIMATE
        self.connect()

    def connect(self) -> None:
        """A new connection brings nothing of an old one."""
        self.prefixes.add(ReplicaReady(R0, FACTS, epoch=self.place[0]))
        self.life, self.newest, self.said = self.place[0], None, KvKnowledge.APPROXIMATE
        self.settle()

    def settle(self) -> None:
        effects: list[RouterEffect] = []
        self.prefixes.settle(self.now, effects)
        for effect in effects:
            if isinstance(effect, WantSnapshot):
                self.wire.append(self.listing())
            elif isinstance(effect, KnowledgeChanged):
                assert effect.knowledge is not self.said, "no change"
                self.said = effect.knowledge
        assert self.said is self.prefixes.knowledge(R0), "a change was not said"

    def listing(self) -> KvListed:
        epoch, number = self.place
        return KvListed(R0, number, tuple(sorted(self.keys)), epoch)

    def content(self) -> frozenset[BlockKey]:
        return frozenset(key for key in KEYS if self.prefixes.match([key]))

    @rule(
        keys=st.sets(st.sampled_from(KEYS), min_size=1),
        fate=st.sampled_from(["comes", "comes", "comes late", "is lost"]),
    )
    def change(self, keys: set[BlockKey], fate: str) -> None:
        """The cache gains those it has not, and loses those it has."""
        frame = self.next_change(keys)
        if fate == "comes":
            self.take(frame)
        elif fate == "comes late":
            self.wire.append(frame)

    def next_change(self, keys: set[BlockKey]) -> KvReported:
        stored, removed = tuple(sorted(keys - self.keys)), tuple(sorted(keys & self.keys))
        self.keys ^= keys
        epoch, number = self.place
        self.place = (epoch, number + 1)
        self.history[self.place] = self.keys
        return KvReported(R0, number + 1, stored, removed, epoch)

    @rule(told=st.booleans())
    def restart(self, told: bool) -> None:
        """The process begins anew with an empty cache, noticed or not."""
        self.place, self.keys = (self.place[0] + 1, 0), frozenset()
        self.history[self.place] = self.keys
        if told:
            self.connect()

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        index = data.draw(st.integers(0, len(self.wire) - 1))
        self.take(self.wire[index] if again else self.wire.pop(index))

    def take(self, frame: Frame) -> None:
        place = (frame.epoch, frame.number)
        if isinstance(frame, KvListed):
            self.prefixes.listing(frame)
        else:
            self.prefixes.change(frame)
        if frame.epoch >= self.life:
            self.newest = max(place, self.newest or place)
        self.settle()

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))

    @rule()
    def beat(self) -> None:
        """Beats come on the connection of this life: after a silent restart there are none."""
        if self.newest is None or self.newest[0] != self.place[0]:
            return
        self.prefixes.latest(R0, self.place[1])
        self.newest = max(self.newest, self.place)
        self.settle()

    @rule(seconds=st.floats(0.0, 6.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    @rule()
    def become_quiet(self) -> None:
        """All is lost but what comes from now on."""
        self.wire = []
        self.take(self.next_change({KEYS[0]}))
        for _ in range(2):
            while self.wire:
                self.take(self.wire.pop(0))
            self.beat()
            self.now += LISTING_PATIENCE
            self.settle()
        assert self.prefixes.knowledge(R0) is KvKnowledge.EXACT
        assert self.content() == self.keys

    @invariant()
    def exact_is_exact(self) -> None:
        if self.prefixes.knowledge(R0) is KvKnowledge.EXACT:
            assert self.newest is not None
            assert self.content() == self.history[self.newest]
        self.prefixes.index.check_integrity()


TestFeedStates = FeedStates.TestCase
TestFeedStates.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
