"""Evictor against a model made of lists that are searched from end to end.

Three chains of three digests; whoever serves one holds its blocks until it gives them back.
Foresight is LRU here: nothing repeats often enough for anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.kvcache.eviction.config import ORDERS, EvictionConfig
from headrace.core.kvcache.eviction.evictor import Evictor
from headrace.core.kvcache.eviction.marks import Owner
from headrace.core.kvcache.table import BlockTable
from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import Iterable

NUM_BLOCKS = 9
DEPTH = 3
PLAIN, WANTED, PINNED = "plain", "wanted", "pinned"


@dataclass
class Kept:
    """A free block of the model; ``order``: what decides within its level, lowest first."""

    block: int
    level: str
    order: tuple[float, ...]
    tenant: str


def first(kept: Iterable[Kept]) -> Kept:
    return min(kept, key=lambda kept: kept.order)


class EvictorStates(RuleBasedStateMachine):
    """Content is published, given back, used again, waited for and lost, in any order."""

    @initialize(
        order=st.sampled_from(ORDERS),
        pinned_share=st.sampled_from([0.0, 0.25, 1.0]),
        tenant_share=st.sampled_from([0.3, 1.0]),
    )
    def build(self, order: str, pinned_share: float, tenant_share: float):
        config = EvictionConfig(order=order, pinned_share=pinned_share, tenant_share=tenant_share)
        self.max_pins = int(pinned_share * NUM_BLOCKS)
        self.max_cached = int(tenant_share * NUM_BLOCKS) if tenant_share < 1 else None
        self.looks_ahead = order == "foresight"
        self.blocks: dict[bytes, BlockId] = {}
        self.evictor = Evictor(NUM_BLOCKS, config, self.blocks.get)
        self.now, self.count = 0.0, 0
        self.kept: list[Kept] = []
        self.used: dict[int, tuple[BlockTable, int]] = {}  # block -> who holds it, and its depth
        self.owners: dict[int, tuple[str, int, float, str]] = {}  # tenant, depth, pin, who pinned
        self.waiting: list[tuple[int, BlockTable]] = []
        self.coming: list[tuple[int, BlockTable]] = []
        self.leaving: list[BlockTable] = []

    def table(self, chain: int, owner: Owner) -> BlockTable:
        table = BlockTable([0] * (DEPTH + 1), 1, b"")
        table.chain = [bytes([chain, depth]) * 16 for depth in range(DEPTH)]
        table.owner = owner
        return table

    @rule(
        chain=st.integers(0, 2),
        tenant=st.sampled_from(["red", "blue"]),
        retention=st.sampled_from([None, 2.0, 50.0]),
    )
    def serve(self, chain: int, tenant: str, retention: float | None):
        """Take what is there, compute the rest."""
        owner = Owner(tenant=tenant, retention=retention, num_prompt_blocks=2)
        table = self.table(chain, owner)
        if any(self.blocks.get(digest) in self.used for digest in table.chain):
            return  # one user at a time keeps the model simple
        found = []
        for digest in table.chain:
            if digest not in self.blocks:
                break
            block = self.blocks[digest]
            self.evictor.remove([block])
            self.kept = [kept for kept in self.kept if kept.block != block]
            found.append(block)
        table.blocks = tuple(found)
        self.evictor.found(table, found)
        for depth in range(DEPTH):
            digest = table.chain[depth]
            if depth >= len(found):
                if digest in self.blocks:
                    return  # its beginning was lost and its end was not
                block = next(b for b in range(NUM_BLOCKS) if b not in self.blocks.values())
                table.blocks += (BlockId(block),)
                self.blocks[digest] = BlockId(block)
                self.evictor.published(table, [depth])
                self.owners[block] = (tenant, depth, 0.0, "")
            block = table.blocks[depth]
            pin, by = self.owners[block][2:]
            self.owners[block] = (tenant, depth, pin, by)
            self.used[block] = (table, depth)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject):
        block = data.draw(st.sampled_from(sorted(self.used)))
        table, depth = self.used.pop(block)
        owner = table.owner
        tenant, _, pin, by = self.owners[block]
        if owner.retention is not None and depth < owner.num_prompt_blocks:
            until = self.now + owner.retention
            if until > pin:
                pin, by = until, owner.tenant
        self.owners[block] = (tenant, depth, pin, by)
        self.evictor.add([BlockId(block)])
        pins = [kept for kept in self.kept if kept.level == PINNED]
        mine = [kept for kept in pins if self.owners[kept.block][3] == by]
        if pin > self.now and len(mine) < self.max_pins:
            self.kept.append(Kept(block, PINNED, (pin, -depth, block), tenant))
        else:
            self.place(block)

    @rule(chain=st.integers(0, 2))
    def expect(self, chain: int):
        table = self.table(chain, Owner())
        rank = self.count = self.count + 1
        self.evictor.expect(table, rank)
        if self.looks_ahead:
            self.coming.append((rank, table))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def forget(self, data: st.DataObject):
        entry = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(entry)
        self.leaving.append(entry[1])
        self.evictor.forget(entry[1])

    @rule(seconds=st.sampled_from([0.5, 1.0, 60.0]))
    def advance(self, seconds: float):
        self.now += seconds
        self.evictor.advance(self.now)
        ended = [k for k in self.kept if k.level == PINNED and k.order[0] <= self.now]
        for kept in sorted(ended, key=lambda kept: kept.order):
            self.kept.remove(kept)
            self.place(kept.block)
        taken = [digest for _, table in self.coming for digest in table.chain]
        self.waiting += self.coming
        self.coming = []
        gone: list[bytes] = []
        for table in self.leaving:
            gone += [d for d in table.chain[::-1] if self.rank(d) is None and d not in gone]
        self.leaving = []
        moves = [*((digest, (PLAIN, WANTED)) for digest in taken), *((d, (WANTED,)) for d in gone)]
        for digest, levels in moves:
            block = self.blocks.get(digest)
            moved = [k for k in self.kept if k.block == block and k.level in levels]
            for kept in moved:
                self.kept.remove(kept)
                self.place(kept.block)

    @precondition(lambda self: self.kept)
    @rule()
    def lose(self):
        victims = self.victims()
        block = self.evictor.pop()
        (victim,) = [kept for kept in victims if kept.block == block]
        self.kept.remove(victim)
        del self.blocks[next(d for d, b in self.blocks.items() if b == block)]

    def victims(self) -> list[Kept]:
        """Return who may go next: several, if as many tenants are over their quota by the same."""
        if self.max_cached is not None:
            have = {k.tenant: sum(o.tenant == k.tenant for o in self.kept) for k in self.kept}
            plain = [k for k in self.kept if k.level == PLAIN and have[k.tenant] > self.max_cached]
            if plain:
                most = max(have[kept.tenant] for kept in plain)
                tenants = {kept.tenant for kept in plain if have[kept.tenant] == most}
                return [first(kept for kept in plain if kept.tenant == t) for t in tenants]
        for level in (PLAIN, WANTED, PINNED):
            here = [kept for kept in self.kept if kept.level == level]
            if here:
                return [first(here)]
        raise AssertionError("nothing is kept")

    def place(self, block: int) -> None:
        digest = next(d for d, b in self.blocks.items() if b == block)
        tenant, depth, *_ = self.owners[block]
        rank = self.rank(digest)
        self.count += 1
        if rank is None:
            self.kept.append(Kept(block, PLAIN, (self.count,), tenant))
        else:
            self.kept.append(Kept(block, WANTED, (-rank, -depth, block), tenant))

    def rank(self, digest: bytes) -> int | None:
        return min((rank for rank, table in self.waiting if digest in table.chain), default=None)

    @invariant()
    def the_order_is_the_models(self):
        if not hasattr(self, "evictor"):
            return
        levels = {PLAIN: 0, WANTED: 1, PINNED: 2}
        expected = sorted(self.kept, key=lambda kept: (levels[kept.level], kept.order))
        assert list(self.evictor.victims()) == [kept.block for kept in expected]
        assert len(self.evictor) == len(self.kept)
        pinned = [kept for kept in self.kept if kept.level == PINNED]
        assert self.evictor.figures().pinned == len(pinned)


EvictorStates.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestEvictorStates = EvictorStates.TestCase
