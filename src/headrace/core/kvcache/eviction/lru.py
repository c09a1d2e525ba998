"""Least recently used first: an intrusive doubly linked list *is* the order. O(1) per operation.

Owners give their blocks back tail first, so that of one chain the end goes before the
beginning: a prefix is worth more than what follows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def used(self, mark: Mark, now: Seconds) -> None:
        """Nothing to learn: it is removed and added."""

    def add(self, block: BlockId, mark: Mark, now: Seconds) -> None:
        """Link a block as the newest."""
        ring = self._ring
        newest = self._previous[ring]
        self._next[newest] = self._previous[ring] = block
        self._previous[block], self._next[block] = newest, ring
        self._size += 1

    def work(self) -> None:
        """Nothing to learn."""

    def remove(self, block: BlockId) -> None:
        """Unlink a block. Raises KeyError if it is not linked."""
        before, after = self._previous[block], self._next[block]
        if after == _UNLINKED:
            raise KeyError(block)
        self._next[before] = after
        self._previous[after] = before
        self._next[block] = self._previous[block] = _UNLINKED
        self._size -= 1

    def pop(self, now: Seconds) -> BlockId:
        """Unlink the oldest block. Raises KeyError when there is none."""
        oldest = self._next[self._ring]
        if oldest == self._ring:
            raise KeyError("no block")
        self.remove(BlockId(oldest))
        return BlockId(oldest)

    def victims(self, now: Seconds) -> Iterator[BlockId]:
        """Walk from the oldest to the newest."""
        block = self._next[self._ring]
        while block != self._ring:
            yield BlockId(block)
            block = self._next[block]
