"""Survey: what a table would find, or holds together with others. Only asks, changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.core.kvcache.blocks import BlockPool
    from headrace.core.kvcache.prefix import Content, PrefixIndex
    from headrace.core.kvcache.table import BlockTable
    from headrace.types import BlockId


WALKED = 1024
"""Blocks that are looked at one by one: 0.3 us each (micro/long_prompt.py)."""


class Survey:
    """Looks at the pool's references and the index."""

    def __init__(self, pool: BlockPool, index: PrefixIndex) -> None:
        self._pool = pool
        self._index = index

    @property
    def num_blocks(self) -> int:
        """All blocks there are."""
        return self._pool.num_blocks

    @property
    def num_blank(self) -> int:
        """Free blocks whose content is of no value."""
        return self._pool.num_free - self._pool.num_cached

    def next_victims(self, count: int) -> list[tuple[BlockId, Content]]:
        """Return at most ``count`` blocks whose content goes next, with it, in order."""
        victims = ((b, self._index.content(b)) for b in self._pool.next_victims(count))
        return [(block, content) for block, content in victims if content is not None]

    def held(self, digests: Iterable[bytes]) -> list[tuple[BlockId, Content]]:
        """Return the blocks that hold these contents, with them, up to the first that is not here.

        As long as ``num_still`` counts them, copies made of them meanwhile are of that content.
        """
        found: list[tuple[BlockId, Content]] = []
        for digest in digests:
            block = self._index.find(digest)
            content = None if block is None else self._index.content(block)
            if block is None or content is None:
                break
            found.append((block, content))
        return found

    def num_still(self, held: Iterable[tuple[BlockId, Content]]) -> int:
        """Return how many of the first blocks hold the same as then, never evicted meanwhile."""
        count = 0
        for block, content in held:
            if self._index.content(block) is not content:
                break
            count += 1
        return count

    def demand(self, table: BlockTable) -> int:
        """Return how many free blocks it takes until all of a table's tokens have a place.

        Blocks that others hold and the table can share cost nothing; free cached ones do. Behind
        the first WALKED of them, which those are is a guess, by bisection: a block in the middle
        may be held for itself, as the source of a copy.
        """
        held = len(table.blocks)
        walked = min(table.num_sharable, held + WALKED)
        while held < walked and self._is_held(table, held):
            held += 1
        if held < walked:
            return -(-len(table.tokens) // table.block_size) - held
        held = _leading(self._is_held, table, held, max(held, table.num_named))
        while held >= table.num_named and held < table.num_sharable and self._is_held(table, held):
            held += 1
        return -(-len(table.tokens) // table.block_size) - held

    def num_cached(self, table: BlockTable) -> int:
        """Guess, by bisection, how many leading blocks of a table are cached."""
        return self._index.reach(table, 0)

    def num_shared(self, table: BlockTable) -> int:
        """Guess, by bisection, how many leading blocks of a table others hold too."""
        return _leading(self._is_shared, table, 0, len(table.blocks))

    def _is_held(self, table: BlockTable, index: int) -> bool:
        block = self._index.find(table.digest(index))
        return block is not None and self._pool.references(block) > 0

    def _is_shared(self, table: BlockTable, index: int) -> bool:
        return self._pool.references(table.blocks[index]) > 1


def _leading(
    holds: Callable[[BlockTable, int], bool], table: BlockTable, low: int, high: int
) -> int:
    """Return up to which block something holds of a table, if it does so of leading ones."""
    while low < high:
        middle = (low + high) // 2
        if holds(table, middle):
            low = middle + 1
        else:
            high = middle
    return low
