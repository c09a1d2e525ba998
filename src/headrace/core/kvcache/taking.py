"""Taking: tables take in what is cached of them, a slice at a time.

Slices follow each other from event to event, one for each event and all tables, those first that
began first. Until a table has all of it, nothing is computed for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.kvcache.coming import Coming
    from headrace.core.kvcache.prefix import PrefixIndex
    from headrace.core.kvcache.table import BlockTable
    from headrace.types import BlockId


class Taking:
    """``share`` puts cached blocks into a table: the books, and the order of eviction."""

    def __init__(
        self,
        index: PrefixIndex,
        coming: Coming,
        share: Callable[[BlockTable, list[BlockId]], None],
        slice_blocks: int,
    ) -> None:
        self._index = index
        self._coming = coming
        self._share = share
        self._slice = slice_blocks
        self._tables: dict[BlockTable, None] = {}  # under way, a dict as an ordered set

    @property
    def is_under_way(self) -> bool:
        """Whether a table has not got all of it."""
        return bool(self._tables)

    def take(self, table: BlockTable) -> int | None:
        """Take in what continues a table; return how many blocks since it was asked first.

        None: that is not all, the rest comes with the next events.
        """
        if table not in self._tables and self._take_slice(table):
            self._tables[table] = None
        if table in self._tables:
            return None
        num_taken, table.num_taken = table.num_taken, 0
        return num_taken

    def take_all(self, table: BlockTable) -> None:
        """Take in all at once what continues a table of nobody's."""
        while self._take_slice(table):
            pass
        table.num_taken = 0

    def work(self) -> None:
        """Take a slice for the first table."""
        table = next(iter(self._tables), None)
        if table is not None and not self._take_slice(table):
            del self._tables[table]

    def give_up(self, table: BlockTable) -> None:
        """A table's blocks are taken away: it wants no more."""
        self._tables.pop(table, None)
        table.num_taken = 0

    def _take_slice(self, table: BlockTable) -> bool:
        """Append cached blocks to a table; whether there are more."""
        start = len(table.blocks)
        if table.num_published < start:
            return False
        stop = table.num_sharable
        found = self._index.run(table, start, min(stop, start + self._slice))
        self._share(table, found)
        if found:
            table.blocks += tuple(found)
            table.num_taken += len(found)
            table.num_published = end = len(table.blocks)
            self._coming.found(table, start)
            if len(found) == self._slice and end < stop:
                return self._index.find(table.digest(end)) is not None
        return False
