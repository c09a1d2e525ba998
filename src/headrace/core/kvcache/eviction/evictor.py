"""Evictor: the order of all free cached blocks, and what it is made of.

Victims come from the first of these that has one::

    surplus    the oldest content of a tenant over its quota (quotas.py)
    plain      by the order that the settings name (lru.py, foresight.py)
    wanted     what the waiting queue will hit, latest first (wanted.py)
    pinned     what somebody asked to keep, until its time is over (pins.py)

It is told what happens to content (found, published, lost), which requests wait, and what time
it is; it moves nothing and computes no content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.kvcache.eviction.config import FORESIGHT, EvictionConfig
from headrace.core.kvcache.eviction.foresight import ForesightOrder
from headrace.core.kvcache.eviction.lru import LruOrder
from headrace.core.kvcache.eviction.marks import Mark
from headrace.core.kvcache.eviction.pins import Pins
from headrace.core.kvcache.eviction.quotas import NoQuotas, Quotas, TenantQuotas
from headrace.core.kvcache.eviction.regrets import Regrets
from headrace.core.kvcache.eviction.visits import Visits
from headrace.core.kvcache.eviction.wanted import Expectations, WantedOrder
from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from headrace.core.kvcache.eviction.order import EvictionOrder
    from headrace.core.kvcache.table import BlockTable
    from headrace.types import BlockId, Seconds


class EvictionFigures(NamedTuple):
    """Of one cache, from its start."""

    pinned: int  # free cached blocks that are pinned now
    evicted: int
    regretted: int  # of those, how many were computed again before long


@dataclass(slots=True, eq=False)
class _Levels:
    """Where a free cached block may be; in exactly one of the three."""

    plain: EvictionOrder
    wanted: WantedOrder
    pins: Pins
    quotas: Quotas


class Evictor:
    """``find`` returns the block that holds a digest. O(log n) per block."""

    def __init__(
        self, num_blocks: int, config: EvictionConfig, find: Callable[[bytes], BlockId | None]
    ) -> None:
        foresight = config.order == FORESIGHT
        self._find = find
        self._now: Seconds = 0.0
        self._marks: dict[BlockId, Mark] = {}
        self._levels = _Levels(
            plain=ForesightOrder(num_blocks) if foresight else LruOrder(num_blocks),
            wanted=WantedOrder(),
            pins=Pins(int(config.pinned_share * num_blocks)),
            quotas=(
                TenantQuotas(int(config.tenant_share * num_blocks))
                if config.tenant_share < 1
                else NoQuotas()
            ),
        )
        self._visits = Visits()
        self._expectations = Expectations(config.lookahead_blocks if foresight else 0)
        self._regrets = Regrets()

    def __len__(self) -> int:
        levels = self._levels
        return len(levels.plain) + len(levels.wanted) + len(levels.pins)

    def __contains__(self, block: object) -> bool:
        levels = self._levels
        return block in levels.plain or block in levels.wanted or block in levels.pins

    def advance(self, now: Seconds) -> None:
        """Tell the time: pins end, and a slice of the waiting requests' content is looked at."""
        self._now = now
        pins, quotas = self._levels.pins, self._levels.quotas
        while (block := pins.pop(until=now)) is not None:
            quotas.remove((block,))
            self._place((block,))
        self._levels.plain.work()
        wanted, unwanted = self._expectations.work()
        if wanted:
            free = [block for block in self._holding(wanted) if block in self and block not in pins]
            self.remove(free)
            self._place(free)
        if unwanted:
            among = self._levels.wanted.blocks
            free = [block for block in self._holding(unwanted) if block in among]
            self.remove(free)
            self._place(free)

    def follow(self, plain: EvictionOrder) -> None:
        """Take another plain order, before there is anything in the one there is."""
        if len(self._levels.plain):
            raise InvariantBroken("an order of eviction is changed while it holds blocks")
        self._levels.plain = plain

    def expect(self, table: BlockTable, rank: int) -> None:
        """A table waits; lower ranks are served first."""
        self._expectations.expect(table, rank)

    def forget(self, table: BlockTable) -> None:
        """A table waits no more."""
        self._expectations.forget(table)

    def found(self, table: BlockTable, blocks: list[BlockId]) -> None:
        """A table shares blocks with cached content; all of one lookup, in order."""
        visit = self._visits.of(table, self._marks.get(blocks[-1]) if blocks else None)
        marks = [self._marks[block] for block in blocks]
        for mark in marks:
            if mark.visit is not visit:  # it is, when a table comes back from preemption
                mark.reuse += 1
                mark.visit = visit
        if marks:
            self._levels.plain.used(marks, self._now)

    def published(self, table: BlockTable, indices: Sequence[int]) -> None:
        """These blocks of a table hold content that can be hit from now on."""
        visit = self._visits.of(table, None)
        marks = [Mark(table.chain[index], index, visit.turn, visit) for index in indices]
        for index, mark in zip(indices, marks, strict=True):
            self._regrets.computed(mark.digest)
            self._marks[table.blocks[index]] = mark
        self._levels.plain.used(marks, self._now)

    def add(self, blocks: Sequence[BlockId]) -> None:
        """Published blocks that are in use no more. Their owner's retention runs from now."""
        now, every, wanted = self._now, self._marks, self._expectations.digests
        plain: list[BlockId] = []
        marks: list[Mark] = []
        for block in blocks:
            mark = every[block]
            if (
                mark.visit.owner.retention is not None
                or mark.pinned_until > now
                or mark.digest in wanted
            ) and self._is_special(block, mark):
                continue
            plain.append(block)
            marks.append(mark)
        self._levels.plain.add(plain, marks, now)
        self._levels.quotas.add(plain, marks, yields=True)

    def remove(self, blocks: Sequence[BlockId]) -> None:
        """Blocks that are in use again. Raises InvariantBroken if one is not in the order."""
        levels = self._levels
        wanted, pinned = levels.wanted.blocks, levels.pins.blocks
        plain: Sequence[BlockId] = blocks
        if wanted or pinned:
            plain = [block for block in blocks if block not in wanted and block not in pinned]
            levels.wanted.remove([block for block in blocks if block in wanted])
            levels.pins.remove([block for block in blocks if block in pinned])
        try:
            levels.plain.remove(plain)
        except KeyError as error:
            raise InvariantBroken(
                f"block {error} is free and holds nothing: it cannot be shared"
            ) from None
        levels.quotas.remove(blocks)

    def pop(self) -> BlockId:
        """Take the next victim out; its content is lost. Raises KeyError when there is none."""
        block = self._next()
        mark = self._marks.pop(block)
        self._regrets.lost(mark.digest)
        return block

    def victims(self) -> Iterator[BlockId]:
        """All free cached blocks, next victim first (but for quotas: they count as plain)."""
        levels = self._levels
        yield from levels.plain.victims(self._now)
        yield from levels.wanted.victims()
        yield from levels.pins.victims()

    def figures(self) -> EvictionFigures:
        """Return what happened so far."""
        regrets = self._regrets
        return EvictionFigures(len(self._levels.pins), regrets.num_lost, regrets.num_regretted)

    def _is_special(self, block: BlockId, mark: Mark) -> bool:
        """Put a free block among the pins or what is wanted, if it belongs there."""
        levels, owner = self._levels, mark.visit.owner
        if owner.retention is not None and mark.depth < owner.num_prompt_blocks:
            until = self._now + owner.retention
            if until > mark.pinned_until:
                mark.pinned_until, mark.pinned_by = until, owner.tenant
        rank = self._expectations.rank(mark.digest)
        if mark.pinned_until > self._now and levels.pins.add(block, mark):
            levels.quotas.add((block,), (mark,), yields=False)
        elif rank is not None:
            levels.wanted.add(block, rank, mark.depth)
            levels.quotas.add((block,), (mark,), yields=False)
        else:
            return False
        return True

    def _holding(self, digests: list[bytes]) -> list[BlockId]:
        """Return the blocks that hold these, as far as any does; each once."""
        found = map(self._find, dict.fromkeys(digests))
        return [block for block in found if block is not None]

    def _place(self, blocks: Sequence[BlockId]) -> None:
        """Put free blocks where they belong, unless that is among the pins."""
        levels = self._levels
        for block in blocks:
            mark = self._marks[block]
            rank = self._expectations.rank(mark.digest)
            if rank is None:
                levels.plain.add((block,), (mark,), self._now)
            else:
                levels.wanted.add(block, rank, mark.depth)
            levels.quotas.add((block,), (mark,), yields=rank is None)

    def _next(self) -> BlockId:
        levels = self._levels
        block = levels.quotas.surplus()
        if block is not None:
            self.remove((block,))
            return block
        if len(levels.plain):
            block = levels.plain.pop(self._now)
        elif len(levels.wanted):
            block = levels.wanted.pop()
        else:
            block = levels.pins.pop()
        if block is None:
            raise KeyError("no block")
        levels.quotas.remove((block,))
        return block
