"""Any order of stores, removals, clears, gaps and restarts leaves the keys that a server holds.

The oracle is a cache as vLLM's: physical blocks by names, equal ones side by side, evicted in any
order that leaves no running prompt without its beginning.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.balancer.prefix_index import PrefixIndex
from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.events import KvListed, KvReported
from headrace.core.router.foreign_blocks import (
    AllCleared,
    BlocksRemoved,
    BlocksStored,
    ForeignBlocks,
    ForeignChange,
    foreign_root,
)
from headrace.core.router.foreign_feed import ForeignFeed
from headrace.core.router.knowledge import Feed, Heard
from headrace.core.router.requests import keys_of
from headrace.types import ReplicaId

UNIT, SIZE = 4, 2
REPLICA = ReplicaId("r")
Prefix = tuple[int, ...]

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(
    lambda bits: tuple(token for bit in bits for token in (bit, 7) * (SIZE // 2))
)


class ServerStates(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.life = 0
        self.number = 0
        self.copies: Counter[Prefix] = Counter()  # by all tokens up to a block's end
        self.is_whole = True  # nothing was lost since the cache was known to be empty
        self.is_noticed = True  # nothing was lost since the last batch that was heard
        self.is_late = False  # a new life of which nothing was heard
        self.blocks = ForeignBlocks(UNIT, max_blocks=1000)
        self.line = ForeignFeed(REPLICA, self.blocks)
        self.feed = Feed()  # what the Router has
        self.index = PrefixIndex()
        self.index.add(REPLICA)

    def name(self, prefix: Prefix) -> int:
        return hash((self.life, prefix))

    def say(self, *changes: ForeignChange, is_heard: bool = True) -> None:
        if self.is_late and self.number == self.line.wanted:
            self.number += 1  # that it started anew is known only by a replay, or by its health
        number, self.number = self.number, self.number + 1
        if not is_heard:
            self.is_whole = self.is_noticed = False
            return
        self.is_noticed, self.is_late = True, False
        self.line.hear(number)
        event = self.line.take(number, changes)
        if isinstance(event, KvListed):
            if self.feed.listing(event.epoch, event.number) is not Heard.OLD:
                self.index.replace(REPLICA, event.keys)
        elif isinstance(event, KvReported):
            heard = self.feed.change(event.epoch, event.number)
            assert heard is not Heard.OLD
            if heard is Heard.ANEW:
                self.index.replace(REPLICA, ())
            self.index.store(REPLICA, event.stored)
            self.index.remove(REPLICA, event.removed)

    def stored(self, prompt: Prefix, first: int) -> BlocksStored:
        ends = range((first + 1) * SIZE, len(prompt) + 1, SIZE)
        for end in ends:
            self.copies[prompt[:end]] += 1
        parent = self.name(prompt[: first * SIZE]) if first else None
        names = [self.name(prompt[:end]) for end in ends]
        return BlocksStored(
            names=names, parent=parent, tokens=prompt[first * SIZE :], block_size=SIZE
        )

    @rule(prompt=prompts, is_heard=st.booleans() | st.just(True))
    def compute(self, prompt: Prefix, is_heard: bool) -> None:
        """A prompt is computed behind what of it is cached."""
        ends = range(SIZE, len(prompt) + 1, SIZE)
        hit = next((n for n, end in enumerate(ends) if not self.copies[prompt[:end]]), len(ends))
        if hit < len(ends):
            self.say(self.stored(prompt, hit), is_heard=is_heard)

    @rule(prompt=prompts)
    def compute_twice_at_once(self, prompt: Prefix) -> None:
        self.say(self.stored(prompt, 0))

    @precondition(lambda self: +self.copies)
    @rule(data=st.data(), is_heard=st.booleans() | st.just(True))
    def evict(self, data: st.DataObject, is_heard: bool) -> None:
        victim = data.draw(st.sampled_from(sorted(+self.copies)))
        self.copies[victim] -= 1
        self.say(BlocksRemoved([self.name(victim)]), is_heard=is_heard)

    @rule()
    def clear(self) -> None:
        self.copies.clear()
        self.say(AllCleared())
        self.is_whole = True

    @rule()
    def start_anew(self) -> None:
        self.life, self.number, self.is_whole, self.is_late = self.life + 1, 0, True, False
        self.copies.clear()
        self.say(BlocksRemoved([]))

    @rule(prompt=prompts)
    def start_anew_and_be_heard_late(self, prompt: Prefix) -> None:
        self.life, self.number = self.life + 1, 0
        self.copies.clear()
        self.say(self.stored(prompt, 0), is_heard=False)
        self.is_late = True

    @invariant()
    def the_index_has_what_the_server_has(self) -> None:
        there = set()
        for prefix in +self.copies:
            if len(prefix) % UNIT == 0:
                there.add(keys_of(prompt_chain(foreign_root(UNIT), prefix, UNIT))[-1])
        held = {key for key in there if self.index.num_held(REPLICA, (key,))}
        assert set(self.blocks.held) == set(self.index._shelves[REPLICA].held)
        if self.is_noticed:
            assert len(held) == len(self.index)  # nothing is claimed that is not there
        if self.is_whole:
            assert held == there
            assert len(self.index) == len(there)
            assert not self.feed.missed
        self.blocks.check_integrity()
        self.index.check_integrity()


TestServerStates = ServerStates.TestCase
TestServerStates.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
