"""BlockPool: reference counts of all blocks, and the order in which free ones are handed out.

It knows no tokens and no digests: only whether a free block's content is worth keeping. Free
blocks come from three places, in this order:

1. **blank**: used before, content of no value. Last in, first out: their memory is resident and
   probably still in a processor's cache.
2. **untouched**: never used, in ascending order. After the blank ones, so that memory grows only
   when live and cached blocks together need it; before the cached ones, because throwing away
   content while empty memory lies about would cost computation.
3. **cached**: content that can still be hit. Oldest first: the intrusive doubly linked list
   *is* the eviction order. Owners give their blocks back tail first, so that of one chain the
   end goes before the beginning: a prefix is worth more than what follows it.

All operations are O(1) per block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import InvariantBroken
from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import Callable

_UNLINKED = -1  # inside the list arrays only; never leaves this module


class BlockPool:
    """``num_blocks`` blocks with reference counts.

    ``evict`` is called with a block whose kept content is about to be lost.
    """

    def __init__(self, num_blocks: int, evict: Callable[[BlockId], None]) -> None:
        self.num_blocks = num_blocks
        self._evict = evict
        self._references = [0] * num_blocks
        self._blank: list[BlockId] = []
        self._num_touched = 0  # blocks with an index from here on are untouched
        self._num_cached = 0
        # A ring through `num_blocks`, which is no block: its next is the oldest cached block.
        self._next = [_UNLINKED] * num_blocks + [num_blocks]
        self._previous = [_UNLINKED] * num_blocks + [num_blocks]

    @property
    def num_free(self) -> int:
        """Blocks that may be handed out now."""
        return len(self._blank) + self.num_blocks - self._num_touched + self._num_cached

    @property
    def num_cached(self) -> int:
        """Free blocks whose content is kept."""
        return self._num_cached

    def references(self, block: BlockId) -> int:
        """Return how many owners a block has."""
        return self._references[block]

    def take(self) -> BlockId:
        """Hand out a free block, with one reference. The caller has looked at ``num_free``."""
        if self._blank:
            block = self._blank.pop()
        elif self._num_touched < self.num_blocks:
            block = BlockId(self._num_touched)
            self._num_touched += 1
        elif self._num_cached:
            block = BlockId(self._next[self.num_blocks])
            self._unlink(block)
            self._evict(block)
        else:
            raise InvariantBroken(f"no free block: all {self.num_blocks} are referenced")
        self._references[block] = 1
        return block

    def share(self, block: BlockId) -> None:
        """Add a reference to a block, which may be free and cached."""
        if not self._references[block]:
            self._unlink(block)
        self._references[block] += 1

    def give_back(self, block: BlockId, *, keep: bool) -> None:
        """Drop a reference. With the last, the block is free; ``keep`` says: as a cached one."""
        references = self._references[block] - 1
        if references < 0:
            raise InvariantBroken(f"block {block} was given back more often than it was taken")
        self._references[block] = references
        if references:
            return
        if keep:
            self._link_newest(block)
        else:
            self._blank.append(block)

    def cached(self) -> list[BlockId]:
        """Return the free cached blocks, next to be evicted first. For tests and snapshots."""
        blocks: list[BlockId] = []
        block = self._next[self.num_blocks]
        while block != self.num_blocks and len(blocks) <= self.num_blocks:
            blocks.append(BlockId(block))
            block = self._next[block]
        return blocks

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless every block is in exactly one place."""
        cached = self.cached()
        linked = [b for b in range(self.num_blocks) if self._next[b] != _UNLINKED]
        if len(cached) != self._num_cached or sorted(cached) != linked:
            raise InvariantBroken(
                f"{self._num_cached} cached blocks counted, {len(cached)} in order, "
                f"{len(linked)} linked"
            )
        for block in (*cached, self.num_blocks):
            if self._previous[self._next[block]] != block:
                raise InvariantBroken(f"the eviction order is torn behind block {block}")
        referenced = sum(1 for count in self._references if count)
        free = {*cached, *self._blank, *range(self._num_touched, self.num_blocks)}
        if any(self._references[b] for b in free) or len(free) != self.num_free:
            raise InvariantBroken(f"{self.num_free} free blocks counted, {len(free)} distinct")
        if referenced + len(free) != self.num_blocks:
            raise InvariantBroken(
                f"{referenced} referenced + {len(self._blank)} blank + "
                f"{self.num_blocks - self._num_touched} untouched + {len(cached)} cached "
                f"!= {self.num_blocks} blocks"
            )

    def _unlink(self, block: BlockId) -> None:
        before, after = self._previous[block], self._next[block]
        if after == _UNLINKED:
            raise InvariantBroken(f"block {block} is free and holds nothing: it cannot be shared")
        self._next[before] = after
        self._previous[after] = before
        self._next[block] = self._previous[block] = _UNLINKED
        self._num_cached -= 1

    def _link_newest(self, block: BlockId) -> None:
        ring = self.num_blocks
        newest = self._previous[ring]
        self._next[newest] = self._previous[ring] = block
        self._previous[block], self._next[block] = newest, ring
        self._num_cached += 1
