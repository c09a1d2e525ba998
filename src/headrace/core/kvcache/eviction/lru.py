"""Least recently used first: an intrusive doubly linked list *is* the order. O(1) per operation.

Owners give their blocks back tail first, so that of one chain the end goes before the
beginning: a prefix is worth more than what follows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headrace.core.kvcache.eviction.marks import Mark
    from headrace.types import Seconds

_UNLINKED = -1  # inside the list arrays only; never leaves this module


class LruOrder:
    """Knows blocks 0 to ``num_blocks``, exclusive."""

    def __init__(self, num_blocks: int) -> None:
        # A ring through `num_blocks`, which is no block: its next is the oldest.
        self._ring = num_blocks
        self._next = [_UNLINKED] * num_blocks + [num_blocks]
        self._previous = [_UNLINKED] * num_blocks + [num_blocks]
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, block: object) -> bool:
        return isinstance(block, int) and self._next[block] != _UNLINKED

    def used(self, marks: Sequence[Mark], now: Seconds) -> None:
        """Nothing to learn: it is removed and added."""

    def add(self, blocks: Sequence[BlockId], marks: Sequence[Mark], now: Seconds) -> None:
        """Link blocks, the last of them as the newest."""
        after, before, ring = self._next, self._previous, self._ring
        newest = before[ring]
        for block in blocks:
            after[newest], before[block] = block, newest
            newest = block
        after[newest], before[ring] = ring, newest
        self._size += len(blocks)

    def work(self) -> None:
        """Nothing to learn."""

    def remove(self, blocks: Iterable[BlockId]) -> None:
        """Unlink blocks. Raises KeyError if one is not linked."""
        followers, leaders = self._next, self._previous
        for block in blocks:
            before, after = leaders[block], followers[block]
            if after == _UNLINKED:
                raise KeyError(block)
            followers[before], leaders[after] = after, before
            followers[block] = leaders[block] = _UNLINKED
            self._size -= 1

    def pop(self, now: Seconds) -> BlockId:
        """Unlink the oldest block. Raises KeyError when there is none."""
        oldest = self._next[self._ring]
        if oldest == self._ring:
            raise KeyError("no block")
        self.remove((BlockId(oldest),))
        return BlockId(oldest)

    def victims(self, now: Seconds) -> Iterator[BlockId]:
        """Walk from the oldest to the newest."""
        block = self._next[self._ring]
        while block != self._ring:
            yield BlockId(block)
            block = self._next[block]
