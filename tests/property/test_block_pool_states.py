"""BlockPool against a model made of plain lists."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.kvcache.blocks import BlockPool
from headrace.testing.eviction import OldestFirst
from headrace.types import BlockId

NUM_BLOCKS = 6


class BlockPoolStates(RuleBasedStateMachine):
    """Any order of taking, sharing and giving back."""

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[int] = []
        self.pool = BlockPool(NUM_BLOCKS, evict=self.evicted.append, cached=OldestFirst())
        self.owners: list[int] = []  # one entry for each reference
        self.blank: list[int] = []
        self.untouched = list(range(NUM_BLOCKS))
        self.cached: list[int] = []

    @property
    def num_free(self) -> int:
        return len(self.blank) + len(self.untouched) + len(self.cached)

    @precondition(lambda self: self.num_free)
    @rule()
    def take(self):
        lost = []
        if self.blank:
            expected = self.blank.pop()
        elif self.untouched:
            expected = self.untouched.pop(0)
        else:
            expected = self.cached.pop(0)
            lost = [expected]
        self.evicted.clear()
        assert self.pool.take(1) == [expected]
        assert self.evicted == lost
        self.owners.append(expected)

    @precondition(lambda self: self.owners or self.cached)
    @rule(data=st.data())
    def share(self, data: st.DataObject):
        block = data.draw(st.sampled_from([*self.owners, *self.cached]))
        self.pool.share([BlockId(block)])
        if block in self.cached:
            self.cached.remove(block)
        self.owners.append(block)

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), keep=st.booleans())
    def give_back(self, data: st.DataObject, keep: bool):
        block = data.draw(st.sampled_from(self.owners))
        self.pool.give_back([BlockId(block)], kept=[block] if keep else ())
        self.owners.remove(block)
        if block not in self.owners:
            (self.cached if keep else self.blank).append(block)

    @invariant()
    def the_pool_agrees_with_the_lists(self):
        self.pool.check_integrity()
        assert self.pool.num_free == self.num_free
        assert self.pool.num_cached == len(self.cached)
        assert self.pool.cached() == self.cached
        for block in range(NUM_BLOCKS):
            assert self.pool.references(BlockId(block)) == self.owners.count(block)


BlockPoolStates.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None
)
TestBlockPoolStates = BlockPoolStates.TestCase
