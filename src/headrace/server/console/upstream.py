"""HTTP/1.1 to our own servers: one exchange a connection, bodies handed on as they arrive.

Raises RequestErrors that can be answered to the browser as they are.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

import httptools

from headrace.errors import DeadlineExceeded, NotReady, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from headrace.types import Seconds

    Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

CONNECT_SECONDS = 2.0  # both are on this machine
FETCH_SECONDS = 7.0  # for a whole answer; the admin plane waits 5 s for its gateway
MAX_FETCH_BYTES = 8 << 20
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole answer."""

    status: int
    content_type: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server. ``name`` is what people call it, ``authority`` the Host header's value."""

    name: str
    authority: str
    connect: Callable[[], Coroutine[None, None, Streams]]

    async def fetch(self, method: str, target: str, body: bytes = b"") -> Fetched:
        """Return a whole answer, whatever its status. Raises NotReady or DeadlineExceeded."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                async with self.ask(method, target, body, silence=FETCH_SECONDS) as answer:
                    whole = await answer.whole()
        except TimeoutError:
            raise DeadlineExceeded(f"{self.name} took over {FETCH_SECONDS:g} s") from None
        return Fetched(answer.status, answer.content_type, whole)

    @asynccontextmanager
    async def ask(
        self, method: str, target: str, body: bytes, *, silence: Seconds, key: str = ""
    ) -> AsyncIterator[Answer]:
        """Send a request; the answer's head is there, its body comes. Leaving hangs up.

        ``silence``: longest pause between bytes. ``key``: sent as ``Authorization: Bearer``.
        """
        reader, writer = await self._open()
        try:
            writer.write(self._head(method, target, len(body), key) + body)
            answer = Answer(reader, self.name, silence)
            await answer.begin()
            yield answer
        finally:
            writer.close()

    async def _open(self) -> Streams:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self.connect()
        except TimeoutError:
            raise NotReady(f"no connection to {self.name} in {CONNECT_SECONDS:g} s") from None
        except OSError as error:
            raise NotReady(f"no connection to {self.name}: {error.strerror or error}") from None

    def _head(self, method: str, target: str, length: int, key: str) -> bytes:
        fields = [f"{method} {target} HTTP/1.1", f"Host: {self.authority}", "Connection: close"]
        if length:
            fields += ["Content-Type: application/json", f"Content-Length: {length}"]
        if key:
            fields.append(f"Authorization: Bearer {key}")
        return "\r\n".join([*fields, "", ""]).encode("ascii")


def at_socket(path: str, name: str) -> Upstream:
    """Return the server at a Unix socket."""
    return Upstream(name, "localhost", lambda: asyncio.open_unix_connection(path))


def at_url(url: str, name: str) -> Upstream:
    """Return the server at ``http://HOST:PORT``. Raises UsageError."""
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port
    if parts.scheme != "http" or host is None or port is None:
        raise UsageError(f"{url!r} is not http://HOST:PORT")
    return Upstream(name, parts.netloc, lambda: asyncio.open_connection(host, port))


class Answer:
    """An answer that arrives. The methods named ``on_`` are httptools' callbacks."""

    def __init__(self, reader: asyncio.StreamReader, name: str, silence: Seconds) -> None:
        self.status = 0  # until its head is there
        self.content_type = b""
        self._name = name
        self._reader = reader
        self._silence = silence
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._complete = False

    async def begin(self) -> None:
        """Wait for the head."""
        while not self.status:
            await self._more()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        while True:
            if self._pieces:
                piece = b"".join(self._pieces)
                self._pieces.clear()
                yield piece
            elif self._complete:
                return
            else:
                await self._more()

    async def whole(self) -> bytes:
        """Return the whole body."""
        body = b""
        async for piece in self.pieces():
            body += piece
            if len(body) > MAX_FETCH_BYTES:
                raise NotReady(f"{self._name} sent over {MAX_FETCH_BYTES} bytes")
        return body

    async def _more(self) -> None:
        try:
            async with asyncio.timeout(self._silence):
                data = await self._reader.read(_READ_BYTES)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._name} was silent for {self._silence:g} s") from None
        except OSError as error:
            raise NotReady(f"{self._name} hung up: {error.strerror or error}") from None
        if not data:
            raise NotReady(f"{self._name} hung up in the middle of its answer")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._complete:
                raise NotReady(f"{self._name} does not speak HTTP/1.1: {error}") from None

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._complete = True
