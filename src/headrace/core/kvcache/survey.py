"""Survey: what a table would find, or holds together with others. Only asks, changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.core.kvcache.blocks import BlockPool
    from headrace.core.kvcache.prefix import Content, PrefixIndex
    from headrace.core.kvcache.table import BlockTable
    from headrace.types import BlockId


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

    def demand(self, table: BlockTable) -> int:
        """Return how many free blocks it takes until all of a table's tokens have a place.

        Blocks that others hold and the table can share cost nothing; free cached ones do.
        """
        index = len(table.blocks)
        while index < table.num_sharable:
            block = self._index.find(table.digest(index))
            if block is None or not self._pool.references(block):
                break
            index += 1
        return -(-len(table.tokens) // table.block_size) - index

    def num_cached(self, table: BlockTable) -> int:
        """Guess, by bisection, how many leading blocks of a table are cached."""
        low, high = 0, table.num_named
        while low < high:
            middle = (low + high) // 2
            if self._index.find(table.digest(middle)) is None:
                high = middle
            else:
                low = middle + 1
        return low

    def num_shared(self, table: BlockTable) -> int:
        """Guess, by bisection, how many leading blocks of a table others hold too."""
        low, high = 0, len(table.blocks)
        while low < high:
            middle = (low + high) // 2
            if self._pool.references(table.blocks[middle]) > 1:
                low = middle + 1
            else:
                high = middle
        return low
