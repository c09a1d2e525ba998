"""All client connections of a process: how many there may be, their deadlines, their end."""

from __future__ import annotations

import asyncio
import logging
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol, cast

from headrace.clock import unix_time
from headrace.errors import RequestError
from headrace.server.gateway.http.connection import Connection, Excess
from headrace.server.gateway.http.crowd import Crowd

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from headrace.clock import Clock
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.limits import HttpLimits
    from headrace.server.gateway.http.messages import HttpRequest, RequestHead
    from headrace.types import Seconds

_LOG = logging.getLogger(__name__)
_ACCEPT_BACKLOG = 1024


def _nobody_else(_name: str) -> int:
    return 0


class Application(Protocol):
    """Answers requests."""

    def refuse(self, head: RequestHead) -> RequestError | None:
        """Refuse a request by its head, before its body is read."""
        ...

    def serve(self, request: HttpRequest, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        ...

    def refused(self, error: RequestError, exchange: Exchange) -> None:
        """Answer what could not be read as a request, or was refused by its head."""
        ...


class Listener:
    """Accepts connections on sockets it is given. ``count`` is told how many there are.

    ``elsewhere`` is that of its Crowd.
    """

    def __init__(
        self,
        *,
        limits: HttpLimits,
        clock: Clock,
        application: Application,
        count: Callable[[int], None],
        elsewhere: Callable[[str], int] = _nobody_else,
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.date = _http_date()  # as old as the last tick
        self._application = application
        self._count = count
        self.crowd = Crowd(limits, elsewhere)
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None

    @property
    def num_connections(self) -> int:
        """Open client connections."""
        return len(self.crowd)

    async def start(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: cast("asyncio.Protocol", Connection(self)), sock=sock, backlog=_ACCEPT_BACKLOG
        )
        self._servers.append(server)
        if self._timer is None:
            self._timer = loop.call_later(self.limits.sweep_period, self._tick)

    def admit(self, connection: Connection, address: str) -> Excess | None:
        """See Host."""
        refusal = self.crowd.add(connection, address)
        self._count(len(self.crowd))
        if refusal is None:
            return None
        return Excess(refusal, len(self.crowd) - self.limits.max_connections)

    def release(self, connection: Connection) -> None:
        """Forget a connection."""
        self.crowd.remove(connection)
        self._count(len(self.crowd))
        if not self.crowd and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def refuse(self, head: RequestHead) -> RequestError | None:
        """See Application."""
        return self._application.refuse(head)

    def refused(self, error: RequestError, exchange: Exchange) -> None:
        """See Application."""
        self._application.refused(error, exchange)

    def serve(self, request: HttpRequest, exchange: Exchange) -> None:
        """Answer a request: the boundary round each, where bugs of ours become a 500."""
        try:
            self._application.serve(request, exchange)
        except RequestError as error:
            exchange.fail(error)
        except Exception:
            _LOG.exception("request failed: %s %s", request.head.method, request.head.path)
            exchange.fail(RequestError("internal error"))

    def sweep(self) -> None:
        """Enforce every connection's deadlines."""
        now = self.clock.now()
        for connection in self.crowd:
            connection.sweep(now)

    def hand_over(self) -> None:
        """Leave new connections to another process, and let each open one make one request more."""
        for server in self._servers:
            server.close()
        for connection in self.crowd:
            connection.leave()

    def stop_accepting(self) -> None:
        """Close the listening sockets, and every connection as soon as it is idle."""
        for server in self._servers:
            server.close()
        for connection in self.crowd:
            connection.retire()

    async def closed(self, limit: Seconds) -> None:
        """Wait until the last connection is closed, at most ``limit`` seconds."""
        if self.crowd:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._empty,), timeout=limit)

    def close(self) -> None:
        """Cut what is left and stop the timer."""
        self.stop_accepting()
        for connection in self.crowd:
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.limits.sweep_period, self._tick)
        self.date = _http_date()
        self.sweep()


def _http_date() -> bytes:
    return formatdate(unix_time(), usegmt=True).encode()
