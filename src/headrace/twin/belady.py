"""Belady's optimum: an order of eviction that knows the future. For comparison only.

What is used furthest in the future goes first (Belady, "A study of replacement algorithms for a
virtual-storage computer", IBM Systems Journal 5(2), 1966); of what is never used again, or used
by the same request, the tail. Requests are known by their places in the trace and are
taken to start about in that order.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from headrace.core.kvcache.eviction.marks import Mark
    from headrace.types import BlockId, Seconds

_NEVER = 1 << 60


class Belady:
    """``futures``: for each request of a trace, in order, the digests of its prompt."""

    def __init__(self, futures: Iterable[Sequence[bytes]]) -> None:
        self._uses: dict[bytes, list[int]] = {}
        for place, digests in enumerate(futures):
            for digest in digests:
                self._uses.setdefault(digest, []).append(place)
        for places in self._uses.values():
            places.reverse()  # the next use is the last entry
        self._begun: set[int] = set()
        self._entries: dict[BlockId, tuple[int, int, BlockId]] = {}
        self._digests: dict[BlockId, bytes] = {}
        self._heap: list[tuple[int, int, BlockId]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, block: object) -> bool:
        return block in self._entries

    def began(self, place: int) -> None:
        """A request has looked up what it can share."""
        self._begun.add(place)

    def used(self, marks: Sequence[Mark], now: Seconds) -> None:
        """Nothing to learn."""

    def add(self, blocks: Sequence[BlockId], marks: Sequence[Mark], now: Seconds) -> None:
        """Take blocks in."""
        for block, mark in zip(blocks, marks, strict=True):
            self._digests[block] = mark.digest
            self._push(block, -mark.depth)

    def work(self) -> None:
        """Nothing was put off."""

    def remove(self, blocks: Iterable[BlockId]) -> None:
        """Take blocks out. Raises KeyError."""
        for block in blocks:
            del self._entries[block]

    def pop(self, now: Seconds) -> BlockId:
        """Take out what is used latest. Raises KeyError when there is nothing."""
        while self._heap:
            entry = heappop(self._heap)
            block = entry[2]
            if self._entries.get(block) != entry:
                continue
            del self._entries[block]
            if -entry[0] in self._begun:  # that use is over, the next is later
                self._push(block, entry[1])
                continue
            return block
        raise KeyError("no block")

    def victims(self, now: Seconds) -> Iterator[BlockId]:
        """All blocks, next victim first."""
        return (block for _, _, block in sorted(self._entries.values()))

    def _push(self, block: BlockId, depth: int) -> None:
        entry = self._entries[block] = (-self._next_use(self._digests[block]), depth, block)
        heappush(self._heap, entry)

    def _next_use(self, digest: bytes) -> int:
        places = self._uses.get(digest, [])
        while places and places[-1] in self._begun:
            places.pop()
        return places[-1] if places else _NEVER
