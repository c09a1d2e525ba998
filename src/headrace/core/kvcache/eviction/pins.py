"""Pins: blocks whose owners asked to keep them for a time. They go after all others, not never.

A pin ends by time, and a tenant has no more pins than its share; what is beyond is not pinned.
The pins that end first go first.
"""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, KeysView

    from headrace.core.kvcache.eviction.marks import Mark
    from headrace.types import BlockId, Seconds

_MIN_STALE = 64  # entries of the heap that may be stale before it is built anew


class Pins:
    """Free cached blocks that are pinned, at most ``max_per_tenant``. O(log n) per operation."""

    def __init__(self, max_per_tenant: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._entries: dict[BlockId, tuple[Seconds, int, BlockId]] = {}
        self._heap: list[tuple[Seconds, int, BlockId]] = []
        self._tenants: dict[BlockId, str] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def blocks(self) -> KeysView[BlockId]:
        """What is in it."""
        return self._entries.keys()

    def __contains__(self, block: object) -> bool:
        return block in self._entries

    def add(self, block: BlockId, mark: Mark) -> bool:
        """Take in a block whose pin is in force if its tenant's share allows; say whether."""
        tenant = mark.pinned_by
        if self._counts[tenant] >= self._max_per_tenant:
            return False
        entry = self._entries[block] = (mark.pinned_until, -mark.depth, block)
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + _MIN_STALE:
            self._heap = list(self._entries.values())
            heapify(self._heap)
        self._tenants[block] = tenant
        self._counts[tenant] += 1
        return True

    def remove(self, blocks: Iterable[BlockId]) -> None:
        """Take blocks out. Raises KeyError."""
        for block in blocks:
            del self._entries[block]
            tenant = self._tenants.pop(block)
            self._counts[tenant] -= 1
            if not self._counts[tenant]:
                del self._counts[tenant]

    def pop(self, until: Seconds | None = None) -> BlockId | None:
        """Take out the block whose pin ends first, with ``until``: if it ends by then."""
        while self._heap:
            entry = self._heap[0]
            in_force = self._entries.get(entry[2]) == entry
            if in_force and until is not None and entry[0] > until:
                return None
            heappop(self._heap)
            if in_force:
                self.remove((entry[2],))
                return entry[2]
        return None

    def victims(self) -> Iterator[BlockId]:
        """All blocks, next victim first."""
        for _, _, block in sorted(self._entries.values()):
            yield block
