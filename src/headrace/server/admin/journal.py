"""GET /journal: decisions of the controller and of gateways in one order, with one numbering."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from headrace.errors import RequestError
from headrace.monitoring.shapes import JournalEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.monitoring.journal import Journal
    from headrace.server.admin.gateways import Connected, GatewayAnswers

MAX_ENTRIES = 4096

_decode = msgspec.json.Decoder(list[JournalEntry]).decode


@dataclass(slots=True)
class _Seen:
    """How far one gateway's journal was read."""

    connection: int = 0  # that it came over
    number: int = 0
    unix: float = 0.0


class MergedJournal:
    """Collects when it is asked; what it has shown once keeps its number and place.

    While a gateway does not answer, its entries are left out and come later.
    """

    def __init__(self, own: Journal, connected: Connected) -> None:
        self._own = own
        self._connected = connected
        self._entries: deque[JournalEntry] = deque(maxlen=MAX_ENTRIES)
        self._number = 0
        self._seen_own = 0
        self._seen: dict[str, _Seen] = {}
        self._lock = asyncio.Lock()

    async def after(self, number: int) -> Sequence[JournalEntry]:
        """Return the entries after ``number``, oldest first."""
        async with self._lock:  # of two askers, one collects
            gateways = dict(self._connected.gateways)
            news = [await self._of_gateway(name, gateway) for name, gateway in gateways.items()]
            self._add([*chain.from_iterable(news), *self._of_own()])
        return [entry for entry in self._entries if entry.number > number]

    async def _of_gateway(self, name: str, gateway: GatewayAnswers) -> list[JournalEntry]:
        """Return what is new. A new process counts from 1: all of it is asked for."""
        seen = self._seen.setdefault(name, _Seen())
        if seen.connection != gateway.num_connections:
            seen.connection, seen.number = gateway.num_connections, 0
        try:
            answer = await gateway.ask(f"/journal?after={seen.number}")
            entries = _decode(answer.body) if answer.status == 200 else []
        except (RequestError, msgspec.MsgspecError):
            return []
        entries = [entry for entry in entries if entry.unix > seen.unix]
        if entries:
            seen.number, seen.unix = entries[-1].number, entries[-1].unix
        return entries

    def _of_own(self) -> list[JournalEntry]:
        entries = self._own.after(self._seen_own)
        if entries:
            self._seen_own = entries[-1].number
        return entries

    def _add(self, entries: list[JournalEntry]) -> None:
        for entry in sorted(entries, key=lambda entry: entry.unix):
            self._number += 1
            self._entries.append(msgspec.structs.replace(entry, number=self._number))
