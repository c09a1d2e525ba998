"""KVCache: the one door to the blocks.

A block is in exactly one state::

    free         may be handed out: blank, untouched or cached (blocks.py)
    held         referenced by at least one table
    in flight    referenced only by fences: its owners have ended, a step that touches it has not
    quarantined  its books were wrong: never handed out again (ledger.py)

A **fence** keeps blocks until a step is done. Content is published, and so can be hit, only when
the step that computed it is done; until then its digest is *coming*, and a sequence that wants
the same content had better wait than compute it again.

It knows no requests and decides no order: that is the scheduler's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.kvcache.blocks import BlockPool
from headrace.core.kvcache.chain import pack
from headrace.core.kvcache.coming import Coming
from headrace.core.kvcache.eviction.config import EvictionConfig
from headrace.core.kvcache.eviction.evictor import Evictor
from headrace.core.kvcache.ledger import BlockLedger
from headrace.core.kvcache.prefix import Content, PrefixIndex
from headrace.core.kvcache.survey import Survey
from headrace.core.kvcache.tiers import NoTiers
from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from headrace.core.kvcache.ledger import Misfit
    from headrace.core.kvcache.table import BlockTable
    from headrace.core.kvcache.tiers import Tiers
    from headrace.types import BlockId, StepId, Tokens

MIN_PARTIAL = 4
"""Tokens that a copied block must save: computing fewer costs about what the copy does."""

_EVICTION = EvictionConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCounts:
    """How many blocks are in which state.

    ``free + held + in_flight + quarantined == total``: one that is quarantined and still in
    somebody's table counts as held.
    """

    total: int
    free: int
    cached: int  # of the free ones
    held: int
    in_flight: int
    quarantined: int = 0


class PartialHit(NamedTuple):
    """``target`` begins, once ``source`` was copied to it, with ``num_tokens`` of the sequence."""

    source: BlockId
    target: BlockId
    num_tokens: Tokens


class KVCache:
    """Blocks of ``block_size`` tokens, shared by content.

    ``share_partial`` allows copy-on-write: a sequence whose next tokens begin a cached block
    that goes on differently gets a copy of it. ``share_waiting`` lets one wait for content that
    another computes. ``index``, ``coming``, ``ledger`` and ``survey`` are to be asked, and are
    changed by nobody else; ``evictor`` is to be told the time and who waits, and asked for figures.
    ``tiers`` are below; who builds them sets them.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: Tokens,
        share_partial: bool = True,
        share_waiting: bool = True,
        eviction: EvictionConfig = _EVICTION,
    ) -> None:
        self.block_size = block_size
        self._share_partial = share_partial
        self.index = PrefixIndex()
        self.coming = Coming(self.index, shares=share_waiting)
        self.evictor = Evictor(num_blocks, eviction, self.index.find)
        self._pool = BlockPool(num_blocks, evict=self.index.drop, cached=self.evictor)
        self.ledger = BlockLedger(self._pool)
        self.survey = Survey(self._pool, self.index)
        self.tiers: Tiers = NoTiers()
        self._fences: dict[StepId, list[BlockId]] = {}  # what is given back when a step is done

    @property
    def oldest_fence(self) -> float:
        """The first of the steps that blocks wait for; infinity if they wait for none."""
        return next(iter(self._fences), inf)

    @property
    def num_free(self) -> int:
        """Blocks that may be handed out now, cached content included."""
        return self._pool.num_free

    def blocks_for(self, num_tokens: Tokens) -> int:
        """Return how many blocks hold ``num_tokens``."""
        return -(-num_tokens // self.block_size)

    def take_cached(self, table: BlockTable) -> Tokens:
        """Append every cached block that continues a table; return the tokens gained.

        The last token is left out: it must be computed for its logits. All of the table's blocks
        must be full; while a step computes the newest of them nothing is taken, so that published
        blocks stay the leading ones.
        """
        if table.num_published < len(table.blocks):
            return 0
        found: list[BlockId] = []
        for index in range(len(table.blocks), table.num_sharable):
            block = self.index.find(table.digest(index))
            if block is None:
                break
            self.ledger.share(block)
            found.append(block)
        if found:
            start = len(table.blocks)
            table.blocks += tuple(found)
            table.num_published = len(table.blocks)
            self.coming.found(table, start)
        self.evictor.found(table, found)
        return len(found) * self.block_size

    def copy_cached(self, table: BlockTable, step: StepId) -> PartialHit | None:
        """Append a copy of the cached block that begins like the table's next one.

        The copy is made in ``step``; until that is done, a fence keeps the source. Its last token
        is never taken, so that the next one to be computed has a place in it.
        """
        if not self._share_partial or self.num_free < 2:  # the source may be a free one
            return None
        index = len(table.blocks)
        start = index * self.block_size
        tokens = table.tokens[start : min(start + self.block_size, len(table.tokens)) - 1]
        if len(tokens) < MIN_PARTIAL:
            return None
        found = self.index.closest(table.parent(index), pack(tokens))
        if found is None or found[1] < MIN_PARTIAL:
            return None
        source, num_tokens = found
        self.ledger.share(source)
        self._fence(step, (source,))
        target = self.ledger.take()
        table.blocks += (target,)
        return PartialHit(source, target, num_tokens)

    def grow(self, table: BlockTable, end: Tokens) -> bool:
        """Give the tokens up to ``end`` a place, and announce that they are being computed.

        False, and nothing is changed, if there are too few blocks.
        """
        num_blocks = self.blocks_for(end)
        missing = num_blocks - len(table.blocks)
        if missing > self._pool.num_free:
            return False
        if missing > 0:
            table.blocks += tuple([self.ledger.take() for _ in range(missing)])
        for index in range(table.num_published, num_blocks):
            if table.is_full(index):
                self.coming.announce(table.digest(index), table)
        return True

    def publish(self, table: BlockTable, num_computed: Tokens) -> None:
        """Offer a table's full blocks to the prefix cache; ``num_computed`` tokens are done."""
        for index in range(table.num_published, num_computed // self.block_size):
            block, digest, start = table.blocks[index], table.digest(index), index * self.block_size
            tokens = pack(table.tokens[start : start + self.block_size])
            content = Content(digest, table.parent(index), tokens)
            if self.ledger.is_sound(block) and self.index.add(block, content):
                self.evictor.published(table, index)
            self.coming.settle(digest, table)
            table.num_published = index + 1

    def release(self, table: BlockTable, after: StepId | None) -> None:
        """Take a table's blocks away: at once, or when step ``after`` is done."""
        self.coming.give_up(table)
        blocks = table.blocks[::-1]
        table.blocks, table.num_published, table.num_found, table.num_decided = (), 0, 0, 0
        if after is None:
            for block in blocks:
                self.ledger.give_back(block, keep=block in self.index)
        else:
            self._fence(after, blocks)

    def step_done(self, step: StepId) -> None:
        """Open the fence of a step that is done, or has failed."""
        for block in self._fences.pop(step, ()):
            self.ledger.open(block, keep=block in self.index)

    def audit(self, tables: Iterable[BlockTable], steps: Collection[StepId]) -> list[Misfit]:
        """Quarantine the blocks that do not fit ``tables``, transfers and ``steps``. O(n)."""
        self._fences = {step: blocks for step, blocks in self._fences.items() if step in steps}
        held = Counter(b for table in (*tables, *self.tiers.tables()) for b in table.blocks)
        fenced = Counter(block for blocks in self._fences.values() for block in blocks)
        misfits = self.ledger.audit(held, fenced)
        for block, _ in misfits:
            if block in self.index:
                self.index.drop(block)
        return misfits

    def counts(self) -> BlockCounts:
        """Return how many blocks are in which state. O(1)."""
        ledger, total, free = self.ledger, self._pool.num_blocks, self._pool.num_free
        return BlockCounts(
            total=total,
            free=free,
            cached=self._pool.num_cached,
            held=ledger.num_held,
            in_flight=ledger.num_in_flight,
            quarantined=total - free - ledger.num_held - ledger.num_in_flight,
        )

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Raise InvariantBroken unless the ledger balances against all ``tables`` in use."""
        self._pool.check_integrity()
        self.index.check_integrity()
        tables = [*tables, *self.tiers.tables()]
        held = Counter(block for table in tables for block in table.blocks)
        fenced = Counter(block for blocks in self._fences.values() for block in blocks)
        self.ledger.check_integrity(held, fenced)
        for block in self._pool.cached():
            if block not in self.index:
                raise InvariantBroken(f"block {block} is kept as cached, but holds nothing")
        strangers = [digest.hex() for digest in self.coming.of_strangers(tables)]
        if strangers:
            raise InvariantBroken(f"nobody computes the content that is coming: {strangers}")

    def _fence(self, step: StepId, blocks: Iterable[BlockId]) -> None:
        """Keep blocks, which are in no table any more, until a step is done."""
        fence = self._fences.setdefault(step, [])
        for block in blocks:
            self.ledger.fence(block)
            fence.append(block)
