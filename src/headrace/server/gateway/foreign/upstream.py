"""Our HTTP/1.1 client: calls on kept connections to one foreign replica.

A call is a request and whoever receives its answer, by plain method calls on the event loop: no
task, no future for each. A kept connection that turns out to be dead before any byte of an answer
is replaced at once and unseen; what a replica has begun to answer is never sent twice from here.
The gateway owns retries (a generation has no effect beyond its answer), so a POST may go again
(RFC 9110 section 9.2.2).
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

from headrace.errors import ProtocolError
from headrace.server.gateway.foreign.reading import ResponseHead, ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.clock import Clock
    from headrace.server.gateway.foreign.config import ForeignConfig, ForeignReplica
    from headrace.types import Seconds

_LARGE_BYTES = 8 * 1024  # from here on, head and body are not put together


_CHECK = "check"  # the task that finds out whether anybody listens
_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
"""What stops this process from connecting, whoever listens."""


@cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _nobody_asks(_reason: str) -> None:
    pass


class Receiver(Protocol):
    """Takes an answer as it arrives. May raise ProtocolError, which ends the call as failed."""

    def head(self, head: ResponseHead) -> None:
        """Status and header fields, once."""
        ...

    def body(self, data: bytes) -> None:
        """The next bytes of the body: all of one read."""
        ...

    def end(self) -> None:
        """The answer is complete; nothing follows."""
        ...

    def failed(self, reason: str, *, refused: bool = False) -> None:
        """There is no more to come; nothing follows. ``reason`` is for people.

        ``refused``: nobody listens there.
        """
        ...


class Call:
    """One request under way. ``first_byte_limit``: until the body begins, None for no limit."""

    __slots__ = ("begun", "connection", "first_byte_limit", "is_over", "receiver", "request")

    def __init__(
        self,
        request: tuple[bytes, bytes | bytearray],
        receiver: Receiver,
        *,
        first_byte_limit: Seconds | None,
    ) -> None:
        self.request = request  # head and body
        self.receiver = receiver
        self.first_byte_limit = first_byte_limit
        self.connection: _Connection | None = None
        self.begun = False  # some of the body has come
        self.is_over = False

    def cancel(self) -> None:
        """Nobody wants the answer: close the connection, which is how replicas are told."""
        if not self.is_over:
            self.is_over = True
            if self.connection is not None:
                self.connection.close()

    def fail(self, reason: str, *, refused: bool = False) -> None:
        """End it as failed."""
        if not self.is_over:
            self.is_over = True
            self.receiver.failed(reason, refused=refused)


class Upstream:
    """All connections to one replica.

    ``last_heard`` is when it sent anything at all; ``on_refused`` is called when nobody listens
    there, before the call that found it out fails.
    """

    def __init__(self, replica: ForeignReplica, config: ForeignConfig, clock: Clock) -> None:
        self.replica = replica
        self.config = config
        self.clock = clock
        self.last_heard: Seconds = clock.now()
        self.num_connects = 0
        self.on_refused: Callable[[str], None] = _nobody_asks
        self._kept: list[_Connection] = []  # the last one used is used next
        self._busy: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def send(self, call: Call) -> None:
        """Begin a call, on a kept connection if there is one."""
        if self._timer is None:
            self._sweep()
        while self._kept:
            connection = self._kept.pop()
            if connection.begin(call, kept=True):
                self._busy.add(connection)
                return
        self.send_anew(call)

    def send_anew(self, call: Call) -> None:
        """Begin a call on a connection of its own."""
        task = asyncio.get_running_loop().create_task(self._connect(call))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def broke(self, call: Call, reason: str) -> None:
        """A call's connection was closed: whether anybody listens there is found out first.

        If nobody does, all that was sent there is known to be lost before the call fails.
        """
        task = next((each for each in self._connecting if each.get_name() == _CHECK), None)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._check(), name=_CHECK)
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        task.add_done_callback(lambda done: None if done.cancelled() else call.fail(reason))

    def keep(self, connection: _Connection) -> None:
        """A connection is free again."""
        self._busy.discard(connection)
        if len(self._kept) < self.config.max_kept and self._timer is not None:
            self._kept.append(connection)
        else:
            connection.close()

    def forget(self, connection: _Connection) -> None:
        """A connection is gone."""
        self._busy.discard(connection)
        if connection in self._kept:
            self._kept.remove(connection)

    def close(self) -> None:
        """Cut everything; calls under way are not told."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._connecting:
            task.cancel()
        for connection in (*self._kept, *self._busy):
            connection.close()

    async def _connect(self, call: Call) -> None:
        replica, limit = self.replica, self.config.connect_timeout
        tls = _tls_context() if replica.tls else None
        self.num_connects += 1
        connection = _Connection(self)
        try:
            async with asyncio.timeout(limit):
                await asyncio.get_running_loop().create_connection(
                    lambda: cast("asyncio.Protocol", connection),
                    replica.host,
                    replica.port,
                    ssl=tls,
                )
        except TimeoutError:
            call.fail(f"no connection within {limit:g} s")
        except OSError as error:
            self._fail_to_connect(call, error)
        else:
            if call.is_over:
                self.keep(connection)
            elif connection.begin(call, kept=False):
                self._busy.add(connection)
            else:
                call.fail("it closed the connection at once")

    async def _check(self) -> None:
        """See whether anybody listens, and say so if nobody does."""
        replica, limit = self.replica, self.config.connect_timeout
        try:
            async with asyncio.timeout(limit):
                _, writer = await asyncio.open_connection(replica.host, replica.port)
            writer.close()
        except TimeoutError:
            pass  # it is not known
        except OSError as error:
            if error.errno not in _OWN_LIMITS:
                self.on_refused(f"it closed a connection and takes no other: {error.strerror}")

    def _fail_to_connect(self, call: Call, error: OSError) -> None:
        reason = f"cannot connect: {os.strerror(error.errno) if error.errno else error}"
        refused = error.errno not in _OWN_LIMITS
        if refused:
            self.on_refused(reason)
        call.fail(reason, refused=refused)

    def _sweep(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.config.sweep_period, self._sweep)
        now = self.clock.now()
        for connection in (*self._kept, *self._busy):
            connection.sweep(now)


class _Connection:
    """One connection: kept, or with a call. An asyncio.Protocol in all but its base."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._reader = ResponseReader()
        self._transport: asyncio.Transport
        self._call: Call | None = None
        self._is_kept = False  # the call's connection has served others before
        self._is_untouched = True  # no byte of an answer has come for the call
        self._since: Seconds = 0.0  # the last sign of life

    def begin(self, call: Call, *, kept: bool) -> bool:
        """Send a request; False: the connection is no good any more."""
        transport = self._transport
        if transport.is_closing():
            return False
        self._call = call
        self._is_kept = kept
        self._is_untouched = True
        self._since = self._upstream.clock.now()
        call.connection = self
        head, body = call.request
        if len(body) < _LARGE_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        return True

    def close(self) -> None:
        """Cut it; its call is not told."""
        self._call = None
        self._transport.abort()

    def sweep(self, now: Seconds) -> None:
        """Enforce whichever time applies."""
        config, call, silence = self._upstream.config, self._call, now - self._since
        if call is None:
            if silence >= config.keep_seconds:
                self.close()
            return
        limit = config.silence_timeout if call.begun else call.first_byte_limit
        if limit is not None and silence >= limit:
            what = "nothing more" if call.begun else "no answer"
            self._fail(f"{what} for {silence:.1f} s")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio and uvloop set TCP_NODELAY on connections they open."""
        self._transport = cast("asyncio.Transport", transport)
        self._since = self._upstream.clock.now()

    def data_received(self, data: bytes) -> None:
        """Pass on what came."""
        call = self._call
        if call is None:
            self.close()  # bytes that nobody asked for: it is not to be trusted
            return
        self._is_untouched = False
        self._since = self._upstream.last_heard = self._upstream.clock.now()
        try:
            self._read(call, data)
        except ProtocolError as error:
            self._fail(str(error))

    def eof_received(self) -> None:
        """It sends no more: the transport closes, and ``connection_lost`` follows."""

    def pause_writing(self) -> None:
        """It reads slowly; requests are bounded in size, and one is under way at most."""

    def resume_writing(self) -> None:
        """It reads again."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It ends a body without length, or breaks a call off."""
        self._upstream.forget(self)
        call, self._call = self._call, None
        if call is None or call.is_over:
            return
        if exc is None and self._reader.ends_with_connection:
            self._end(call)
        elif self._is_kept and self._is_untouched:
            self._upstream.send_anew(call)
        else:
            self._upstream.broke(call, f"it closed the connection{f': {exc}' if exc else ''}")

    def _read(self, call: Call, data: bytes) -> None:
        reader = self._reader
        had_head = reader.head is not None
        reader.feed(data)
        if reader.head is None:
            return
        receiver = call.receiver
        if not had_head:
            receiver.head(reader.head)
        pieces = reader.pieces
        if pieces:
            call.begun = True
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            receiver.body(body)
        if reader.ended and self._call is call:
            self._call = None
            if reader.reusable:
                reader.next()
                self._upstream.keep(self)
            else:
                self.close()
            self._end(call)

    def _end(self, call: Call) -> None:
        if not call.is_over:
            call.is_over = True
            try:
                call.receiver.end()
            except ProtocolError as error:
                call.receiver.failed(str(error))

    def _fail(self, reason: str) -> None:
        call, self._call = self._call, None
        self._transport.abort()
        if call is not None:
            call.fail(reason)
