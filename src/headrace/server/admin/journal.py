"""GET /journal: decisions of the controller and of the gateway in one order, with one numbering."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

from headrace.errors import RequestError
from headrace.monitoring.shapes import JournalEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import Answer
    from headrace.monitoring.journal import Journal

MAX_ENTRIES = 4096

_decode = msgspec.json.Decoder(list[JournalEntry]).decode


class GatewayAnswers(Protocol):
    """The gateway, as the admin plane sees it."""

    @property
    def num_connections(self) -> int:
        """How often it was connected."""
        ...

    async def ask(self, path: str) -> Answer:
        """Ask it; raise NotReady or Overloaded without an answer."""
        ...


class MergedJournal:
    """Collects when it is asked; what it has shown once keeps its number and place.

    While the gateway does not answer, its entries are left out and come later.
    """

    def __init__(self, own: Journal, gateway: GatewayAnswers) -> None:
        self._own = own
        self._gateway = gateway
        self._entries: deque[JournalEntry] = deque(maxlen=MAX_ENTRIES)
        self._number = 0
        self._seen_own = 0
        self._seen_gateway = 0
        self._seen_unix = 0.0  # the newest of the gateway's
        self._connection = 0  # that it came over
        self._lock = asyncio.Lock()

    async def after(self, number: int) -> Sequence[JournalEntry]:
        """Return the entries after ``number``, oldest first."""
        async with self._lock:  # of two askers, one collects
            self._add([*await self._of_gateway(), *self._of_own()])
        return [entry for entry in self._entries if entry.number > number]

    async def _of_gateway(self) -> list[JournalEntry]:
        """Return what is new. A new gateway counts from 1: all of it is asked for."""
        if self._connection != self._gateway.num_connections:
            self._connection = self._gateway.num_connections
            self._seen_gateway = 0
        try:
            answer = await self._gateway.ask(f"/journal?after={self._seen_gateway}")
            entries = _decode(answer.body) if answer.status == 200 else []
        except (RequestError, msgspec.MsgspecError):
            return []
        entries = [entry for entry in entries if entry.unix > self._seen_unix]
        if entries:
            self._seen_gateway, self._seen_unix = entries[-1].number, entries[-1].unix
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
