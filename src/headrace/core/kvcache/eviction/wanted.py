"""What waiting requests will hit: it goes last, and of it first what is wanted latest.

``Expectations`` maps the digests of waiting tables to their places in the queue. A table's chain is
taken in by slices, a bounded number of digests with each event, and so is forgetting it: the
longest prompt costs no step more than a slice. Only so many digests are kept in mind at a time;
tables further behind are taken in as those before them leave.

``WantedOrder`` holds the free cached blocks with such content. With requests served in order of
their ranks it evicts as Belady's optimum would ("A study of replacement algorithms", 1966).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, KeysView

    from headrace.core.kvcache.table import BlockTable
    from headrace.types import BlockId

SLICE = 128
"""Digests taken in or forgotten with one event: 0.2 ms."""

_MIN_STALE = 64  # entries of a heap that may be stale before it is built anew


@dataclass(slots=True, eq=False)
class _Waiter:
    """``chain[:num_known]`` is taken in; of a waiter that has left, it is still to be forgotten."""

    rank: int
    table: BlockTable
    num_known: int = 0
    has_left: bool = False


class Expectations:
    """Digest -> ranks of who waits for it. Knows at most ``max_digests`` (and a slice)."""

    def __init__(self, max_digests: int) -> None:
        self._max_digests = max_digests
        self._waiters: dict[BlockTable, _Waiter] = {}
        self._ranks: dict[bytes, deque[_Waiter]] = {}
        self._coming: deque[_Waiter] = deque()
        self._leaving: deque[_Waiter] = deque()
        self._num_known = 0

    @property
    def digests(self) -> KeysView[bytes]:
        """What may have a ``rank``; nothing else has one."""
        return self._ranks.keys()

    def expect(self, table: BlockTable, rank: int) -> None:
        """A table waits; lower ranks are served first."""
        if self._max_digests and table not in self._waiters:
            waiter = self._waiters[table] = _Waiter(rank, table)
            self._coming.append(waiter)

    def forget(self, table: BlockTable) -> None:
        """A table waits no more. Harmless if it did not."""
        waiter = self._waiters.pop(table, None)
        if waiter is not None:
            waiter.has_left = True
            self._leaving.append(waiter)

    def rank(self, digest: bytes) -> int | None:
        """Return the first place in the queue that wants a digest."""
        waiters = self._ranks.get(digest)
        while waiters:
            if not waiters[0].has_left:
                return waiters[0].rank
            waiters.popleft()
        return None

    def work(self) -> tuple[list[bytes], list[bytes]]:
        """Take in and forget a slice; return the digests that are newly wanted and unwanted.

        The latter tail first.
        """
        return (self._take_in() if self._coming else [], self._let_go() if self._leaving else [])

    def _take_in(self) -> list[bytes]:
        taken: list[bytes] = []
        while self._coming and len(taken) < SLICE and self._num_known < self._max_digests:
            waiter = self._coming[0]
            start = waiter.num_known
            room = min(SLICE - len(taken), self._max_digests - self._num_known)
            end = min(start + room, waiter.table.num_sharable)
            if waiter.has_left or end <= start:
                self._coming.popleft()
                continue
            for digest in map(waiter.table.digest, range(start, end)):
                self._ranks.setdefault(digest, deque()).append(waiter)
                taken.append(digest)
            waiter.num_known = end
            self._num_known += end - start
        return taken

    def _let_go(self) -> list[bytes]:
        gone: list[bytes] = []
        num_left = SLICE
        while self._leaving and num_left:
            waiter = self._leaving[0]
            end = waiter.num_known
            start = max(0, end - num_left)
            gone += filter(self._is_over, reversed(waiter.table.chain[start:end]))
            waiter.num_known = start
            num_left -= end - start
            self._num_known -= end - start
            if not start:
                self._leaving.popleft()
        return gone

    def _is_over(self, digest: bytes) -> bool:
        """Whether nobody waits for a digest any more; if so, nothing is left of it."""
        return self.rank(digest) is None and self._ranks.pop(digest, None) is not None


class WantedOrder:
    """Blocks that are wanted, the last rank's tail first. O(log n) per operation."""

    def __init__(self) -> None:
        self._entries: dict[BlockId, tuple[int, int, BlockId]] = {}
        self._heap: list[tuple[int, int, BlockId]] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def blocks(self) -> KeysView[BlockId]:
        """What is in it."""
        return self._entries.keys()

    def __contains__(self, block: object) -> bool:
        return block in self._entries

    def add(self, block: BlockId, rank: int, depth: int) -> None:
        """Take in a block, ``depth`` blocks from its chain's beginning."""
        entry = self._entries[block] = (-rank, -depth, block)
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + _MIN_STALE:
            self._heap = list(self._entries.values())
            heapify(self._heap)

    def remove(self, blocks: Iterable[BlockId]) -> None:
        """Take blocks out. Raises KeyError."""
        for block in blocks:
            del self._entries[block]

    def pop(self) -> BlockId:
        """Take out what is wanted latest. Raises KeyError when there is nothing."""
        while self._heap:
            entry = heappop(self._heap)
            if self._entries.get(entry[2]) == entry:
                del self._entries[entry[2]]
                return entry[2]
        raise KeyError("no block")

    def victims(self) -> Iterator[BlockId]:
        """All blocks, next victim first."""
        for _, _, block in sorted(self._entries.values()):
            yield block
