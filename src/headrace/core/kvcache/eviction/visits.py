"""Visits: which turn of a conversation a table is, by its session or by what it found."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from headrace.core.kvcache.eviction.marks import visit_of

if TYPE_CHECKING:
    from headrace.core.kvcache.eviction.marks import Mark, Visit
    from headrace.core.kvcache.table import BlockTable

MAX_SESSIONS = 65_536
"""Sessions whose turns are counted, the latest: some ten megabytes."""


class Visits:
    """Numbers tables' visits.

    Without a session a table is the next turn of what it continues: of whoever computed the
    last block it found, if nobody else continued that; else a branch at that turn, as all are
    that begin with the same instructions.
    """

    def __init__(self) -> None:
        self._turns: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._num_visits = 0

    def of(self, table: BlockTable, last_found: Mark | None) -> Visit:
        """Return a table's visit, which begins with its first block."""
        if table.visit is None:
            turn = self._turn(table, last_found)
            table.visit = visit_of(self._num_visits, table.owner, turn, len(table.tokens))
            self._num_visits += 1
        return table.visit

    def _turn(self, table: BlockTable, last_found: Mark | None) -> int:
        owner = table.owner
        if not owner.session:
            if last_found is None:
                return 1
            return last_found.turn + (last_found.reuse == 0)
        session = (owner.tenant, owner.session)
        turn = self._turns.pop(session, 0) + 1
        self._turns[session] = turn
        if len(self._turns) > MAX_SESSIONS:
            self._turns.popitem(last=False)
        return turn
