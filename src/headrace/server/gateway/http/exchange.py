"""One request's answer: whole, or a stream of chunks. The only way endpoints reach a client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from headrace.server.gateway.http.messages import (
    Response,
    encode_response,
    encode_stream_head,
    error_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.errors import RequestError
    from headrace.server.gateway.http.messages import ResponseContext
    from headrace.types import Seconds


class Wire(Protocol):
    """The connection, as an exchange sees it."""

    def send(self, data: bytes) -> None:
        """Write bytes; gives the connection up when too many are unsent."""
        ...

    def finish(self) -> None:
        """The answer is complete: close, or go on with the next request."""
        ...

    def abort(self) -> None:
        """Cut the connection."""
        ...


class Exchange:
    """Open until ``reply``, the last ``write``, ``end`` or ``lost``; then every call is harmless.

    ``on_gone`` is called once if the client leaves before the end, ``on_silence`` whenever
    nothing was written for a ping period, ``on_end`` once at the end, however it came.
    """

    def __init__(self, wire: Wire, context: ResponseContext, *, ping_period: Seconds) -> None:
        self.context = context
        self.status = 0  # 0 until a head was written
        self.closed = False
        self.on_gone: Callable[[], None] | None = None
        self.on_silence: Callable[[], None] | None = None
        self.on_end: Callable[[Exchange], None] | None = None
        self._wire = wire
        self._ping_period = ping_period
        self._silent_since: Seconds | None = None  # None: written since the last sweep

    def reply(self, response: Response) -> None:
        """Send a whole answer."""
        if not self.closed:
            self.status = response.status
            self._wire.send(encode_response(response, self.context))
            self._close()

    def fail(self, error: RequestError) -> None:
        """Send an error, or cut the connection where an answer has begun."""
        if self.status == 0:
            self.reply(error_response(error))
        else:
            self.cut()

    def write(self, payload: bytes, content_type: bytes, *, last: bool = False) -> None:
        """Send part of a stream (not empty); the head goes before the first, the end follows."""
        if self.closed:
            return
        self._silent_since = None
        if not self.context.http10:
            form = b"%x\r\n%b\r\n0\r\n\r\n" if last else b"%x\r\n%b\r\n"
            payload = form % (len(payload), payload)
        if self.status == 0:
            self.status = 200
            payload = encode_stream_head(content_type, self.context) + payload
        self._wire.send(payload)
        if last:
            self._close()

    def end(self) -> None:
        """End a stream; one that never began is an empty answer."""
        if self.status == 0:
            self.reply(Response(200, b""))
        elif not self.closed:
            if not self.context.http10:
                self._wire.send(b"0\r\n\r\n")
            self._close()

    def cut(self) -> None:
        """Give the answer up and cut the connection, whatever was sent."""
        if not self.closed:
            self._wire.abort()

    def lost(self) -> None:
        """The client is gone (said by the connection)."""
        if self.closed:
            return
        self.closed = True
        if self.on_gone is not None:
            self.on_gone()
        if self.on_end is not None:
            self.on_end(self)

    def sweep(self, now: Seconds) -> None:
        """Notice silence."""
        if self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since >= self._ping_period:
            self._silent_since = now
            if self.on_silence is not None:
                self.on_silence()

    def _close(self) -> None:
        if self.closed:  # the connection was given up while sending
            return
        self.closed = True
        on_end, self.on_end = self.on_end, None
        self.on_gone = self.on_silence = None  # they know who knows this: no circles of garbage
        if on_end is not None:
            on_end(self)
        self._wire.finish()
