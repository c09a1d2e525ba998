"""BlockPool: reference counts of all blocks, and the order in which free ones are handed out.

It knows no tokens and no digests: only whether a free block's content is worth keeping. Free
blocks come from three places, in this order:

1. **blank**: used before, content of no value. Last in, first out: their memory is resident and
   probably still in a processor's cache.
2. **untouched**: never used, in ascending order. After the blank ones, so that memory grows only
   when live and cached blocks together need it; before the cached ones, because throwing away
   content while empty memory lies about would cost computation.
3. **cached**: content that can still be hit, in the order of an ``Evictable`` (eviction/). Owners
   give their blocks back tail first.

All operations are O(1) per block, besides those of that order.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Protocol

from headrace.errors import InvariantBroken
from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterator, Sequence


class Evictable(Protocol):
    """The free cached blocks, and the order in which their content is lost."""

    def __len__(self) -> int:
        """How many they are."""
        ...

    def add(self, blocks: Sequence[BlockId]) -> None:
        """Blocks became free, one after the other; their content is kept."""
        ...

    def remove(self, blocks: Sequence[BlockId]) -> None:
        """Blocks are used again. Raises InvariantBroken if one is not in the order."""
        ...

    def pop(self) -> BlockId:
        """Take the next victim out. There is one."""
        ...

    def victims(self) -> Iterator[BlockId]:
        """All of them, next victim first."""
        ...


class BlockPool:
    """``num_blocks`` blocks with reference counts.

    ``evict`` is called with a block whose kept content is about to be lost.
    """

    def __init__(
        self, num_blocks: int, evict: Callable[[BlockId], None], cached: Evictable
    ) -> None:
        self.num_blocks = num_blocks
        self._evict = evict
        self._cached = cached
        self._references = [0] * num_blocks
        self._blank: list[BlockId] = []
        self._num_touched = 0  # blocks with an index from here on are untouched
        self._num_cached = 0

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

    def take(self, count: int) -> list[BlockId]:
        """Hand out free blocks, with one reference each. The caller has looked at ``num_free``."""
        blocks = [self._next() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def withdraw(self, block: BlockId) -> None:
        """Hand out this free block, with one reference, whatever is in it. O(n): for accidents."""
        if block >= self._num_touched:
            self._blank[:0] = map(BlockId, range(self._num_touched, block))
            self._num_touched = block + 1
        elif block in self._blank:
            self._blank.remove(block)
        else:
            self._cached.remove((block,))
            self._num_cached -= 1
            self._evict(block)
        self._references[block] = 1

    def share(self, blocks: Collection[BlockId]) -> None:
        """Add a reference to different blocks, each of which may be free and cached."""
        references = self._references
        free = [block for block in blocks if not references[block]]
        if free:
            self._cached.remove(free)
            self._num_cached -= len(free)
        for block in blocks:
            references[block] += 1

    def give_back(self, blocks: Collection[BlockId], kept: Container[BlockId]) -> Sequence[BlockId]:
        """Drop a reference to each block; return those that had none.

        With its last reference a block is free, if it is in ``kept``: as a cached one.
        """
        references = self._references
        strangers: list[BlockId] = []
        cached: list[BlockId] = []
        for block in blocks:
            left = references[block] - 1
            if left > 0:
                references[block] = left
            elif left < 0:
                strangers.append(block)
            else:
                references[block] = 0
                (cached if block in kept else self._blank).append(block)
        if cached:
            self._cached.add(cached)
            self._num_cached += len(cached)
        return strangers

    def cached(self) -> list[BlockId]:
        """Return the free cached blocks, next to be evicted first. For tests and snapshots."""
        return list(self._cached.victims())

    def next_victims(self, count: int) -> list[BlockId]:
        """Return at most ``count`` free cached blocks, next to be evicted first."""
        return list(islice(self._cached.victims(), count))

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless every block is in exactly one place."""
        cached = self.cached()
        if not len(cached) == len(set(cached)) == len(self._cached) == self._num_cached:
            raise InvariantBroken(
                f"{self._num_cached} cached blocks counted, {len(cached)} in order, "
                f"{len(set(cached))} distinct"
            )
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

    def _next(self) -> BlockId:
        """Take out the free block that is handed out first."""
        if self._blank:
            return self._blank.pop()
        if self._num_touched < self.num_blocks:
            self._num_touched += 1
            return BlockId(self._num_touched - 1)
        if not self._num_cached:
            raise InvariantBroken(f"no free block: all {self.num_blocks} are referenced")
        block = self._cached.pop()
        self._num_cached -= 1
        self._evict(block)
        return block
