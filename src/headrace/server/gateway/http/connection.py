"""One client connection: bytes in order, one answer at a time, a deadline for every phase.

    idle -> head -> body -> answering -> idle ...
                \\-> refused -> lingering -> closed

A connection over the cap may still ask how the server is, once (RESERVED); a few more are told that
they are too many; beyond that they are cut, so that no flood uses all descriptors up.

While a request is answered, bytes behind it are kept unread (bounded), so that a client that
leaves is still noticed at once. A client that half-closes counts as gone.
"""

from __future__ import annotations

import socket
import sys
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from headrace.errors import RequestError
from headrace.server.gateway.http.exchange import Exchange
from headrace.server.gateway.http.limits import HEALTH_PATHS
from headrace.server.gateway.http.messages import ResponseContext, encode_response, error_response
from headrace.server.gateway.http.reading import Phase, RequestReader

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from headrace.clock import Clock
    from headrace.server.gateway.http.limits import HttpLimits
    from headrace.server.gateway.http.messages import HttpRequest, RequestHead
    from headrace.types import Seconds

_KERNEL_BYTES = 128 * 1024  # that the kernel keeps unsent
_HIGH_WATER_BYTES = 64 * 1024  # of the transport's buffer: above it a client counts as stalled


class Excess(NamedTuple):
    """A connection is one too many: why, and how many there are over the cap of all."""

    error: RequestError
    num_over: int


class Host(Protocol):
    """What a connection asks of its server."""

    @property
    def limits(self) -> HttpLimits:
        """Caps and deadlines."""
        ...

    @property
    def clock(self) -> Clock:
        """The time."""
        ...

    @property
    def date(self) -> bytes:
        """The Date field of answers."""
        ...

    def admit(self, connection: Connection, address: str) -> Excess | None:
        """Register a connection; return why it should not be there, if so."""
        ...

    def release(self, connection: Connection) -> None:
        """Forget a connection."""
        ...

    def refuse(self, head: RequestHead) -> RequestError | None:
        """Refuse a request by its head, before its body is read."""
        ...

    def serve(self, request: HttpRequest, exchange: Exchange) -> None:
        """Answer a request, now or later. Never raises."""
        ...

    def refused(self, error: RequestError, exchange: Exchange) -> None:
        """Answer what could not be read as a request, or was refused by its head."""
        ...


class State(Enum):
    """What becomes of the connection after the current answer."""

    OPEN = auto()
    RESERVED = auto()  # over the cap: one answer, and not to every question
    LEAVING = auto()  # another process takes over: one request more
    RETIRING = auto()  # the server drains: close as soon as it is idle
    LINGERING = auto()  # answered for the last time; the rest of the input is dropped
    CLOSED = auto()


_ANSWERING = (State.OPEN, State.LEAVING, State.RESERVED, State.RETIRING)


class Connection:
    """HTTP/1.0 and 1.1. The transport and the listener call it; so does the open exchange.

    An asyncio.Protocol in all but its base, which would keep the class from being compiled.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._transport: asyncio.Transport
        self._reader = RequestReader(host.limits, host.refuse)
        self._exchange: Exchange | None = None
        self._backlog = bytearray()
        self._state = State.OPEN
        self._since: Seconds = 0.0  # when the current phase began
        self._stalled_since: Seconds | None = None
        self._fresh = True  # no request so far
        self._advancing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start, or refuse the connection when there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        _tune(transport.get_extra_info("socket"))
        self._since = self._host.clock.now()
        peer = transport.get_extra_info("peername")
        excess = self._host.admit(self, peer[0] if isinstance(peer, tuple) else "unix")
        if excess is not None:
            self._turn_away(*excess)

    def data_received(self, data: bytes) -> None:
        """Read on, or keep the bytes until the current answer is complete."""
        if self._state in (State.LINGERING, State.CLOSED):
            return
        if self._exchange is None:
            self._feed(data)
            self._advance()
            return
        self._backlog += data
        if len(self._backlog) > self._host.limits.max_backlog_bytes:
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """The client sends no more: it is gone."""
        self._lose_exchange()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._state = State.CLOSED
        self._host.release(self)
        self._lose_exchange()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        self._stalled_since = self._host.clock.now()

    def resume_writing(self) -> None:
        """It reads again."""
        self._stalled_since = None

    def send(self, data: bytes) -> None:
        """Write, unless the client has left too much of what came before unread."""
        if self._stalled_since is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent > self._host.limits.max_send_buffer_bytes:
                self.abort()
                return
        self._transport.write(data)

    def finish(self) -> None:
        """The open exchange is complete."""
        exchange = self._exchange
        self._exchange = None
        self._since = self._host.clock.now()
        self._fresh = False
        if exchange is None or exchange.context.keep_alive:
            self._advance()
        elif self._reader.phase is Phase.FAILED:
            self._linger()
        else:
            self._close()

    def abort(self) -> None:
        """Cut the connection."""
        self._state = State.CLOSED
        self._transport.abort()
        self._lose_exchange()

    def leave(self) -> None:
        """Close after the answer under way, or the next one.

        An idle connection is not closed at once: its client may be about to use it.
        """
        if self._state is State.OPEN:
            self._state = State.LEAVING
            if self._exchange is not None:
                self._exchange.context.keep_alive = False

    def retire(self) -> None:
        """Close as soon as nothing is under way."""
        if self._state not in (State.OPEN, State.LEAVING):
            return
        self._state = State.RETIRING
        if self._exchange is not None:
            self._exchange.context.keep_alive = False
        elif self._reader.phase is Phase.IDLE:
            self._close()

    def sweep(self, now: Seconds) -> None:
        """Enforce whichever deadline applies."""
        limits = self._host.limits
        if self._stalled_since is not None and now - self._stalled_since >= limits.write_timeout:
            self.abort()
        elif self._exchange is not None:
            self._exchange.sweep(now)
        elif now - self._since >= self._patience() or self._is_too_slow(now - self._since):
            self.abort()

    def _patience(self) -> Seconds:
        """How long the current phase may take."""
        limits = self._host.limits
        if self._state in (State.LINGERING, State.CLOSED, State.RESERVED):
            return limits.linger
        match self._reader.phase:
            case Phase.IDLE:
                return limits.header_timeout if self._fresh else limits.idle_timeout
            case Phase.HEAD:
                return limits.header_timeout
            case Phase.BODY:
                return limits.body_timeout
            case Phase.ENDED | Phase.FAILED:
                return limits.linger

    def _is_too_slow(self, elapsed: Seconds) -> bool:
        limits = self._host.limits
        if self._reader.phase is not Phase.BODY or elapsed < limits.body_grace:
            return False
        return len(self._reader.body) < limits.min_body_rate * elapsed

    def _feed(self, data: bytes) -> None:
        reader = self._reader
        before = reader.phase
        reader.feed(data)
        if reader.phase is not before:
            self._since = self._host.clock.now()
            if reader.expects_continue and not reader.ready:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _advance(self) -> None:
        """Answer what was read, one after another: a loop, since answers may come at once."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._exchange is None and self._state in _ANSWERING:
                if not self._answer_next():
                    return
        finally:
            self._advancing = False

    def _answer_next(self) -> bool:
        """Begin the next answer; return whether there was one to begin."""
        ready = self._reader.ready
        if not ready and self._backlog:
            data = bytes(self._backlog)
            self._backlog.clear()
            self._transport.resume_reading()
            self._feed(data)
        if not ready:
            return False
        request = ready.popleft()
        context = ResponseContext(headers=[(b"date", self._host.date)])
        self._exchange = exchange = Exchange(
            self, context, ping_period=self._host.limits.ping_period
        )
        if isinstance(request, RequestError):
            context.keep_alive = False
            self._host.refused(request, exchange)
            return True
        head = request.head
        context.keep_alive = head.keep_alive and self._state is State.OPEN
        context.http10 = head.http10
        context.head_only = head.method == "HEAD"
        self._host.serve(request, exchange)
        return True

    def _turn_away(self, error: RequestError, num_over: int) -> None:
        """Answer one of a few questions, or only say why not, or not even that."""
        limits = self._host.limits
        if 0 < num_over <= limits.reserved_connections:
            self._state = State.RESERVED
            self._reader = RequestReader(limits, _refuse_most(self._host, error))
        elif num_over <= 2 * limits.reserved_connections:
            context = ResponseContext(keep_alive=False)
            self.send(encode_response(error_response(error), context))
            self._linger()
        else:
            self.abort()

    def _linger(self) -> None:
        """Say that no more comes, and drop what the client still sends, for a moment.

        Closing at once with input unread would reset the connection, and the client might
        never see the answer (RFC 9112 section 9.6).
        """
        if self._transport.is_closing():
            return
        self._state = State.LINGERING
        self._backlog.clear()
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        self._state = State.CLOSED
        self._transport.close()

    def _lose_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost()


def _refuse_most(host: Host, error: RequestError) -> Callable[[RequestHead], RequestError | None]:
    """Return what refuses all but questions after the server's health."""
    return lambda head: host.refuse(head) if head.path in HEALTH_PATHS else error


def _tune(sock: socket.socket) -> None:
    """Send without delay, and let the kernel keep little for a client that does not read.

    Asyncio forgets TCP_NODELAY where the listening socket named no protocol. Without the second,
    the kernel would take megabytes for each such client before we could notice that it stalls.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _KERNEL_BYTES)
