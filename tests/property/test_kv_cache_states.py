"""KVCache against memory: what a table shares must hold exactly its tokens.

Every slot of every block remembers the tokens up to its position. A step computes some tokens of
a table and is done later; its copies and writes reach the memory at once, as on a device that
runs steps in order.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.kvcache.cache import MIN_PARTIAL, KVCache
from headrace.core.kvcache.table import BlockTable
from headrace.core.scheduler.events import KvChanged
from headrace.testing.harness import CacheFollower
from headrace.types import StepId, block_key

SIZE = 6


class Work(NamedTuple):
    """What one step computed: a table's tokens up to ``end``."""

    step: StepId
    table: BlockTable
    end: int


class KVCacheStates(RuleBasedStateMachine):
    """Tables grow, share, copy, end; steps are done in order, one or two behind."""

    @initialize(
        num_blocks=st.integers(2, 12),
        share_partial=st.booleans(),
        slice_blocks=st.sampled_from([1, 2, 1024]),
    )
    def build(self, num_blocks: int, share_partial: bool, slice_blocks: int):
        self.kv = KVCache(
            num_blocks=num_blocks,
            block_size=SIZE,
            share_partial=share_partial,
            slice_blocks=slice_blocks,
        )
        self.slice_blocks = slice_blocks
        self.num_blocks = num_blocks
        self.memory: dict[tuple[int, int], tuple[int, ...]] = {}
        self.tables: dict[BlockTable, int] = {}  # tokens computed or planned
        self.in_flight: deque[Work] = deque()
        self.num_steps = 0
        self.copied_in: set[StepId] = set()
        self.follower = CacheFollower()

    @rule(
        prefix=st.sampled_from([0, 1, 2]),
        shared=st.integers(0, 20),
        tail=st.lists(st.integers(10, 11), max_size=14),
    )
    def begin(self, prefix: int, shared: int, tail: list[int]):
        tokens = [prefix] * shared + tail or [0]
        self.tables[BlockTable(tokens, SIZE, b"root")] = 0

    @precondition(lambda self: self.tables and len(self.in_flight) < 2)
    @rule(data=st.data(), budget=st.integers(1, 20))
    def compute(self, data: st.DataObject, budget: int):
        table = data.draw(st.sampled_from(list(self.tables)))
        start, step = self.tables[table], StepId(self.num_steps)
        if start == len(table.tokens):
            table.tokens.append(start % 3)  # as if drawn
        if start == (len(table.blocks) - table.num_taken) * SIZE:
            shared = self.share(table, start, step)
            if shared is None:
                return
            start = shared
        self.tables[table] = start
        self.kv.slices.regain(self.num_blocks)
        room = (len(table.blocks) + self.kv.num_free) * SIZE
        assert not self.kv.grow(table, room + 1)
        end = min(len(table.tokens), start + budget, room)
        if end == start:
            assert step not in self.copied_in  # a copy leaves room for at least one token
            return
        assert self.kv.grow(table, end)
        self.tables[table] = end
        for position in range(start, end):
            self.memory[self.slot(table, position)] = tuple(table.tokens[: position + 1])
        self.in_flight.append(Work(step, table, end))
        self.num_steps += 1

    def share(self, table: BlockTable, start: int, step: StepId) -> int | None:
        num_blocks = len(table.blocks)
        gained = self.kv.take_cached(table)
        assert len(table.blocks) <= num_blocks + self.slice_blocks
        if gained is None:
            assert self.kv.slices.are_due
            return None
        start += gained
        assert start < len(table.tokens)
        if hit := self.kv.copy_cached(table, step):
            assert hit.num_tokens >= MIN_PARTIAL
            self.copied_in.add(step)
            for offset in range(SIZE):
                content = self.memory.get((hit.source, offset), ())
                self.memory[hit.target, offset] = content
            start += hit.num_tokens
            assert start < len(table.tokens)
        for position in range(start):
            found = self.memory[self.slot(table, position)]
            assert found == tuple(table.tokens[: position + 1]), f"wrong content at {position}"
        return start

    @precondition(lambda self: self.in_flight)
    @rule()
    def finish_step(self):
        step, table, end = self.in_flight.popleft()
        self.kv.step_done(step)
        if table in self.tables:
            self.kv.publish(table, end)

    @rule()
    def go_on(self):
        moved = self.kv.num_free
        self.kv.slices.work(0.0)
        assert abs(self.kv.num_free - moved) <= 2 * self.slice_blocks

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject):
        table = data.draw(st.sampled_from(list(self.tables)))
        del self.tables[table]
        touching = [work.step for work in self.in_flight if work.table is table]
        self.kv.release(table, after=max(touching, default=None))

    @invariant()
    def the_ledger_balances(self):
        if not hasattr(self, "kv"):
            return
        self.kv.check_integrity(self.tables)
        counts = self.kv.counts()
        held = Counter(block for table in self.tables for block in table.blocks)
        assert counts.total == self.num_blocks
        assert counts.free + counts.held == counts.total
        if not counts.leaving:
            assert counts.held == len(held)
        assert counts.leaving == 0 or self.in_flight or self.kv.slices.are_due

    @invariant()
    def changes_add_up_to_the_content(self):
        if not hasattr(self, "kv"):
            return
        if changes := self.kv.index.take_changes():
            number = self.follower.number + 1
            self.follower.take(KvChanged(number, changes.stored, changes.removed))
        assert self.follower.keys == set(self.kv.index.keys())
        hits = {block_key(digest) for table in self.tables for digest in self.published(table)}
        assert hits <= self.follower.keys

    def published(self, table: BlockTable) -> list[bytes]:
        """Digests of its blocks that can be hit; a twin of another's block never can."""
        offered = zip(table.blocks, table.chain[: table.num_published], strict=False)
        return [digest for block, digest in offered if block in self.kv.index]

    @invariant()
    def what_is_computed_stays(self):
        for table, computed in getattr(self, "tables", {}).items():
            for position in range(computed):
                found = self.memory[self.slot(table, position)]
                assert found == tuple(table.tokens[: position + 1])

    def teardown(self):
        if not hasattr(self, "kv"):
            return
        while self.in_flight:
            self.finish_step()
        for table in self.tables:
            self.kv.release(table, after=None)
        for _ in range(self.kv.slices.leaving.num_places):  # a slice is a block at least
            self.kv.slices.work(0.0)
        assert not self.kv.slices.are_due
        assert self.kv.num_free == self.num_blocks

    def slot(self, table: BlockTable, position: int) -> tuple[int, int]:
        return table.blocks[position // SIZE], position % SIZE


KVCacheStates.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestKVCacheStates = KVCacheStates.TestCase


@pytest.mark.heavy
@pytest.mark.timeout(600)
class TestManyKVCacheStates(KVCacheStates.TestCase):
    settings = settings(max_examples=2000, stateful_step_count=100, deadline=None)
