"""The server's state for every open tab: asked once for all of them, and not at all without one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from headrace.errors import NotReady, RequestError
from headrace.server.gateway.http.messages import EVENT_STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.server.console.upstream import Upstream
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.types import Seconds

_OK = 200


class StateEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a tab gets twice a second. ``unix`` is the server's time, for the charts."""

    unix: float
    state: msgspec.Raw = msgspec.Raw(b"null")  # a ServerState, as the admin plane wrote it
    lost: str = ""  # why there is none


_encode = msgspec.json.Encoder().encode


class StateFeed:
    """Asks ``admin`` for its state while there are tabs."""

    def __init__(
        self, admin: Upstream, *, period: Seconds, wall_time: Callable[[], Seconds]
    ) -> None:
        self._admin = admin
        self._period = period
        self._wall_time = wall_time
        self._tabs: set[Exchange] = set()
        self._wanted = asyncio.Event()

    @property
    def num_tabs(self) -> int:
        """Tabs that listen."""
        return len(self._tabs)

    def open(self, exchange: Exchange) -> None:
        """Send events to a tab until it leaves."""
        self._tabs.add(exchange)
        self._wanted.set()

        def close() -> None:
            self._tabs.discard(exchange)
            if not self._tabs:
                self._wanted.clear()

        exchange.on_gone = close

    async def run(self) -> None:
        """Ask and tell, for ever."""
        while True:
            await self._wanted.wait()
            event = await self._event()
            for tab in tuple(self._tabs):
                tab.write(event, EVENT_STREAM)
            await asyncio.sleep(self._period)

    async def _event(self) -> bytes:
        try:
            fetched = await self._admin.fetch("GET", "/state")
            if fetched.status != _OK:
                raise NotReady(f"{self._admin.name} answered with status {fetched.status}")
        except RequestError as error:
            event = StateEvent(self._wall_time(), lost=error.message)
        else:
            event = StateEvent(self._wall_time(), msgspec.Raw(fetched.body))
        return b"data: %b\n\n" % _encode(event).replace(b"\n", b" ")
