"""HTTP/1.1, client side, one exchange at a time: asyncio transport below, httptools inside.

A body goes to a sink piece by piece, at the moment it arrives. Nothing here knows of JSON,
events or models.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools


class FailureKind(StrEnum):
    """Why an exchange did not end well. The report counts by these."""

    CONNECT = "connect"  # refused, unreachable, or no answer in time
    TIMEOUT = "timeout"
    DISCONNECT = "disconnect"  # closed by the server before the answer's end
    PROTOCOL = "protocol"  # not HTTP, not SSE, or not the JSON that the API promises
    STATUS = "status"  # an HTTP status of 400 and over
    STREAM_ERROR = "stream_error"  # an error object inside a stream that began well
    CLIENT_LIMIT = "client_limit"  # never sent: too many in flight


class ExchangeFailed(Exception):
    """An exchange did not end well. ``status`` is 0 unless an answer's head arrived."""

    def __init__(self, kind: FailureKind, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status


class Sink(Protocol):
    """Takes an answer as it arrives."""

    def head(self, status: int) -> None:
        """Take the status, once."""
        ...

    def body(self, piece: bytes) -> None:
        """Take the next bytes of the body."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A server and the root of its API."""

    host: str
    port: int
    root: str  # "/v1", without a slash at the end
    tls: bool

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_base_url(url: str) -> Origin:
    """Read ``http[s]://host[:port][/path]``; ``/v1`` is added where the path is without it.

    Raises ValueError with what is wrong.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL: expected http://HOST:PORT or https://HOST")
    tls = parts.scheme == "https"
    path = parts.path.rstrip("/")
    root = path if path.rsplit("/", 1)[-1] == "v1" else f"{path}/v1"
    port = parts.port or (443 if tls else 80)
    return Origin(host=parts.hostname, port=port, root=root, tls=tls)


class Connection(asyncio.Protocol):
    """A connection that carries one exchange after another. ``exchange`` drives it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._sink: Sink | None = None
        self._done: asyncio.Future[None] | None = None
        self._ends_with_connection = False  # the body has neither a length nor chunks
        self._head_seen = False
        self.reusable = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, by no base class

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.abort()  # bytes that nobody asked for: this connection is not to be trusted
            return
        try:
            self._parser.feed_data(data)
        except ExchangeFailed as failure:
            self._finish(failure)
        except httptools.HttpParserError as error:
            inner = error.__context__
            known = inner if isinstance(inner, ExchangeFailed) else None
            self._finish(known or ExchangeFailed(FailureKind.PROTOCOL, f"not HTTP/1.1: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._transport = None
        if exc is None and self._head_seen and self._ends_with_connection:
            self._finish(None)
            return
        reason = f": {exc}" if exc else ""
        message = f"the server closed the connection before the answer's end{reason}"
        self._finish(ExchangeFailed(FailureKind.DISCONNECT, message))

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._head_seen = True
        if self._sink is not None:
            self._sink.head(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        if self._sink is not None:
            self._sink.body(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        self.reusable = self._parser.should_keep_alive() and not self._ends_with_connection
        self._finish(None)

    # What the client calls.

    async def exchange(self, request: bytes, sink: Sink) -> None:
        """Send ``request``; return when the answer has ended. Raises ExchangeFailed."""
        if self._transport is None:
            raise ExchangeFailed(FailureKind.DISCONNECT, "the connection is closed")
        self._parser = httptools.HttpResponseParser(self)
        self._sink = sink
        self._head_seen = False
        self._ends_with_connection = True
        self.reusable = False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._parser = self._sink = self._done = None

    def cut(self) -> None:
        """End the exchange from our side, at once, as a client that goes away does."""
        self.reusable = False
        self._finish(None)

    def abort(self) -> None:
        """Close without a word."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed it."""
        return self._transport is not None and not self._transport.is_closing()

    def _finish(self, failure: ExchangeFailed | None) -> None:
        done = self._done
        if done is None or done.done():
            return
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(failure)


async def connect(origin: Origin, *, timeout: float) -> Connection:  # noqa: ASYNC109
    """Open a connection. Raises ExchangeFailed of kind CONNECT."""
    context = ssl.create_default_context() if origin.tls else None
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            _, connection = await loop.create_connection(
                Connection, origin.host, origin.port, ssl=context
            )
    except TimeoutError:
        message = f"no connection to {origin.authority} within {timeout:g} s"
        raise ExchangeFailed(FailureKind.CONNECT, message) from None
    except OSError as error:
        message = f"cannot connect to {origin.authority}: {error.strerror or error}"
        raise ExchangeFailed(FailureKind.CONNECT, message) from error
    return connection
