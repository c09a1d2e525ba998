"""EvictionOrder: what an order of eviction is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headrace.core.kvcache.eviction.marks import Mark
    from headrace.types import BlockId, Seconds


class EvictionOrder(Protocol):
    """Free cached blocks, the next to be lost first. O(log n) for each operation.

    It knows the past up to ``now`` and nothing else. Owners give blocks back tail first.
    """

    def __len__(self) -> int:
        """How many blocks are in it."""
        ...

    def __contains__(self, block: object) -> bool:
        """Whether a block is in it."""
        ...

    def used(self, marks: Sequence[Mark], now: Seconds) -> None:
        """Content was found in the cache, or was computed because it was not there."""
        ...

    def add(self, blocks: Sequence[BlockId], marks: Sequence[Mark], now: Seconds) -> None:
        """Blocks that are in use no more, with their marks, in this order."""
        ...

    def work(self) -> None:
        """Do a bounded part of what was put off, once for each event."""
        ...

    def remove(self, blocks: Iterable[BlockId]) -> None:
        """Blocks that are in use again, or go to another order. Raises KeyError."""
        ...

    def pop(self, now: Seconds) -> BlockId:
        """Take the next victim out. Raises KeyError when there is none."""
        ...

    def victims(self, now: Seconds) -> Iterator[BlockId]:
        """All blocks, next victim first, as the order is now. Nothing may change meanwhile."""
        ...
