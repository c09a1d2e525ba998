"""Coming: content that a step in flight, a prompt under way or a load is bringing right now.

Whoever wants the same content had better wait for it than compute it again. It knows no blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from headrace.core.kvcache.prefix import PrefixIndex
    from headrace.core.kvcache.table import BlockTable


OF_A_LOAD = -1
"""The urgency of a table that is no sequence's: everybody waits for it."""


class Coming:
    """Digest -> the table of who brings it. Not ``shares``: nobody waits for anybody but loads."""

    def __init__(self, index: PrefixIndex, *, shares: bool) -> None:
        self._index = index
        self._shares = shares
        self._makers: dict[bytes, BlockTable] = {}
        self._awaited: dict[bytes, BlockTable] = {}  # what somebody waits for, and from whom
        self._settled: list[bytes] = []  # awaited, and coming no more

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._makers

    def announce(self, digest: bytes, table: BlockTable) -> None:
        """A table's sequence computes this content, unless another one does already."""
        self._makers.setdefault(digest, table)

    def settle(self, digest: bytes, table: BlockTable) -> None:
        """What a table announced has come, or never will."""
        if self._makers.get(digest) is table:
            del self._makers[digest]
        if self._awaited.get(digest) is table:
            del self._awaited[digest]
            self._settled.append(digest)

    def found(self, table: BlockTable, start: int) -> None:
        """A table's blocks from ``start`` on were cached: nobody need wait for it to make them."""
        if self._awaited:
            for digest in table.chain[start : len(table.blocks)]:
                self.settle(digest, table)

    def give_up(self, table: BlockTable) -> None:
        """Nothing more of what a table announced, or was going to, will come from it."""
        num_announced = len(table.blocks)
        for digest in table.chain[table.num_published : num_announced]:
            self.settle(digest, table)
        if len(table.chain) - num_announced <= len(self._awaited):
            later = table.chain[num_announced:]
        else:
            later = [digest for digest, maker in self._awaited.items() if maker is table]
        for digest in later:
            self.settle(digest, table)

    def awaits(self, table: BlockTable) -> bool:
        """Whether another sequence is computing the first content that a table cannot share yet.

        All of the table's blocks must be full. ``table.awaits`` is then the digest of the last
        content that the two have in common, and is among ``take_settled()`` once that has come, or
        never will: whoever waits is looked at once, not with every block. A maker that is less
        urgent than this sequence may have to give way to it, and is not waited for.
        """
        index = self._index.reach(table, max(len(table.blocks), table.num_found))
        while table.is_full(index) and self._index.find(table.digest(index)) is not None:
            index += 1
        table.num_found = index
        if not table.is_full(index):
            return False
        maker = self._makers.get(table.digest(index))
        if maker is None or not self._is_waited_for(maker, table):
            return False
        table.awaits = _last_common(table, maker, index)
        self._awaited.setdefault(table.awaits, maker)
        return True

    def take_settled(self) -> list[bytes]:
        """Return the digests that somebody awaited and that are coming no more."""
        settled, self._settled = self._settled, []
        return settled

    def forget_strangers(self, tables: Container[BlockTable]) -> None:
        """Take back what none of ``tables`` will ever compute."""
        for digest in self.of_strangers(tables):
            if stranger := self._makers.get(digest):
                self.settle(digest, stranger)
                self.give_up(stranger)

    def of_strangers(self, tables: Container[BlockTable]) -> list[bytes]:
        """Return what comes from none of ``tables``: nothing, or the ledger is wrong."""
        return [digest for digest, table in self._makers.items() if table not in tables]

    def _is_waited_for(self, maker: BlockTable, table: BlockTable) -> bool:
        if maker.urgency > table.urgency:
            return False
        return self._shares or maker.urgency == OF_A_LOAD


def _last_common(table: BlockTable, maker: BlockTable, index: int) -> bytes:
    """Return the digest of the last block that two tables have in common, from ``index`` on.

    By bisection: a digest names everything before it, so tables that part never meet again.
    """
    low, high = index, min(table.num_named, maker.num_named)
    while high - low > 1:
        middle = (low + high) // 2
        if table.digest(middle) == maker.digest(middle):
            low = middle
        else:
            high = middle
    return table.digest(low)
