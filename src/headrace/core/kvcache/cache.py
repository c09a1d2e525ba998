"""KVCache: the one door to the blocks.

A block is in exactly one state::

    free         may be handed out: blank, untouched or cached (blocks.py)
    held         referenced by at least one table, or leaving one (leaving.py): its owners have
                 ended, but a step that touches it has not, or its turn has not come
    quarantined  its books were wrong: never handed out again (ledger.py)

Content is published, and so can be hit, only when the step that computed it is done; until then
its digest is *coming*, and a sequence that wants the same content had better wait than compute it
again.

Nothing takes longer for a longer prompt: tables take cached blocks in (taking.py) and give theirs
back in **slices**, one with each event, as long as that takes.

It knows no requests and decides no order: that is the scheduler's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.kvcache.blocks import BlockPool
from headrace.core.kvcache.chain import pack
from headrace.core.kvcache.coming import Coming
from headrace.core.kvcache.eviction.config import EvictionConfig
from headrace.core.kvcache.eviction.evictor import Evictor
from headrace.core.kvcache.leaving import Leaving
from headrace.core.kvcache.ledger import BlockLedger
from headrace.core.kvcache.prefix import Content, PrefixIndex
from headrace.core.kvcache.slices import SLICE, Slices
from headrace.core.kvcache.survey import Survey
from headrace.core.kvcache.taking import Taking
from headrace.core.kvcache.tiers import NoTiers
from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable

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

    ``free + held + quarantined == total``: one that is quarantined and still in somebody's table
    counts as held. ``leaving`` counts places, as several may hold one block.
    """

    total: int
    free: int
    cached: int  # of the free ones
    held: int
    leaving: int
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
    ``tiers`` are below; who builds them sets them. ``slices``, of at most ``slice_blocks``, go on
    with each event.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: Tokens,
        share_partial: bool = True,
        share_waiting: bool = True,
        eviction: EvictionConfig = _EVICTION,
        slice_blocks: int = SLICE,
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
        self.slices = Slices(
            self._pool,
            Taking(self.index, self.coming, self._share, slice_blocks),
            Leaving(self._give_back, slice_blocks),
        )

    @property
    def num_free(self) -> int:
        """Blocks that may be handed out now, cached content included."""
        return self._pool.num_free

    def blocks_for(self, num_tokens: Tokens) -> int:
        """Return how many blocks hold ``num_tokens``."""
        return -(-num_tokens // self.block_size)

    def num_lacking(self, table: BlockTable) -> int:
        """Return how many blocks a table lacks for its tokens."""
        return self.blocks_for(len(table.tokens)) - len(table.blocks)

    def take_cached(self, table: BlockTable) -> Tokens | None:
        """Append every cached block that continues a table; return the tokens gained.

        None: that takes several events; ask again with the next. The last token is left out: it
        must be computed for its logits. All of the table's blocks must be full; while a step
        computes the newest of them nothing is taken, so that published blocks stay the leading
        ones.
        """
        gained = self.slices.taking.take(table)
        return None if gained is None else gained * self.block_size

    def copy_cached(self, table: BlockTable, step: StepId) -> PartialHit | None:
        """Append a copy of the cached block that begins like the table's next one.

        The copy is made in ``step``; until that is done, a fence keeps the source. Its last token
        is never taken, so that the next one to be computed has a place in it.
        """
        if not self._share_partial or not self._has_free(2):  # the source may be a free one
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
        self.ledger.share((source,))
        self.slices.leaving.leave((source,), after=step)
        (target,) = self.ledger.take(1)
        table.blocks += (target,)
        return PartialHit(source, target, num_tokens)

    def grow(self, table: BlockTable, end: Tokens) -> bool:
        """Give the tokens up to ``end`` a place, and announce that they are being computed.

        False, and nothing is changed, if there are too few blocks.
        """
        num_blocks = self.blocks_for(end)
        missing = num_blocks - len(table.blocks)
        if missing > 0:
            if not self._has_free(missing):
                return False
            table.blocks += tuple(self.ledger.take(missing))
        for index in range(table.num_published, num_blocks):
            if table.is_full(index):
                self.coming.announce(table.digest(index), table)
        return True

    def publish(self, table: BlockTable, num_computed: Tokens) -> None:
        """Offer a table's full blocks to the prefix cache; ``num_computed`` tokens are done."""
        new: list[int] = []
        for index in range(table.num_published, num_computed // self.block_size):
            block, digest, start = table.blocks[index], table.digest(index), index * self.block_size
            tokens = pack(table.tokens[start : start + self.block_size])
            content = Content(digest, table.parent(index), tokens)
            if self.ledger.is_sound(block) and self.index.add(block, content):
                new.append(index)
            self.coming.settle(digest, table)
            table.num_published = index + 1
        if new:
            self.evictor.published(table, new)

    def release(self, table: BlockTable, after: StepId | None) -> None:
        """Take a table's blocks away: from now on, or when step ``after`` is done."""
        self.coming.give_up(table)
        self.slices.taking.give_up(table)
        blocks = table.blocks[::-1]
        table.blocks, table.num_published, table.num_found, table.num_decided = (), 0, 0, 0
        self.slices.leaving.leave(blocks, after)

    def step_done(self, step: StepId) -> None:
        """Give back what only waited for a step that is done, or has failed."""
        self.slices.leaving.step_done(step)

    def audit(self, tables: Iterable[BlockTable], steps: Container[StepId]) -> list[Misfit]:
        """Quarantine the blocks that do not fit ``tables``, transfers and ``steps``. O(n)."""
        self.slices.leaving.forget_strays(steps)
        misfits = self.ledger.audit(self._holders(tables))
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
            leaving=self.slices.leaving.num_places,
            quarantined=total - free - ledger.num_held,
        )

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Raise InvariantBroken unless the ledger balances against all ``tables`` in use."""
        self._pool.check_integrity()
        self.index.check_integrity()
        tables = list(tables)
        self.ledger.check_integrity(self._holders(tables))
        for block in self._pool.cached():
            if block not in self.index:
                raise InvariantBroken(f"block {block} is kept as cached, but holds nothing")
        makers = [*tables, *self.tiers.tables()]
        strangers = [digest.hex() for digest in self.coming.of_strangers(makers)]
        if strangers:
            raise InvariantBroken(f"nobody computes the content that is coming: {strangers}")
        if sum(1 for _ in self.slices.leaving.blocks()) != self.slices.leaving.num_places:
            raise InvariantBroken(
                f"{self.slices.leaving.num_places} places of leaving blocks counted"
            )

    def _holders(self, tables: Iterable[BlockTable]) -> Counter[BlockId]:
        """Count who holds each block."""
        holders = Counter(self.slices.leaving.blocks())
        for table in (*tables, *self.tiers.tables()):
            holders.update(table.blocks)
        return holders

    def _has_free(self, count: int) -> bool:
        """Whether so many blocks are free, after what is leaving has gone if need be."""
        free = self._pool.num_free
        return count <= free or count <= free + self.slices.regain(count - free)

    def _share(self, table: BlockTable, blocks: list[BlockId]) -> None:
        self.ledger.share(blocks)
        self.evictor.found(table, blocks)

    def _give_back(self, blocks: Collection[BlockId]) -> None:
        self.ledger.give_back(blocks, kept=self.index.blocks)
