"""Clients that write down what they hear: many at once, each token with its time.

Written for faults: a client here expects nothing. It records the status, every piece of text,
every finish, error and ``[DONE]``, how the connection ended, and it goes away where it is told
to. What was heard is judged elsewhere (``stream_checks``).

::

    crowd = Crowd(server.port)
    await asyncio.gather(*(crowd.ask(Asked(prompt=p, max_tokens=50)) for p in prompts))
    crowd.heard[0].text
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from headrace.bench.sse import EventTooLong, SseParser
from headrace.clock import MonotonicClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from headrace.types import Seconds, Tokens

ANSWER_SECONDS = 120.0
"""The longest that a client waits for the end of an answer."""

PAUSE_SECONDS = 0.1
"""What a client of a closed loop waits after an answer that was none."""

_HTTP_OK = 200
_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A generation to ask for: ``max_tokens`` whatever they are, unless it ``may_stop``.

    The client goes away after ``enough`` pieces of text, or after ``patience`` seconds.
    """

    prompt: str
    max_tokens: Tokens
    temperature: float = 0.0
    seed: int = 0
    chat: bool = False
    stream: bool = True
    may_stop: bool = False
    enough: int | None = None
    patience: Seconds | None = None


class ErrorObject(msgspec.Struct, frozen=True):
    """The ``error`` of an answer, as far as clients rely on it."""

    message: str = ""
    type: str = ""
    code: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """The ``usage`` of an answer."""

    prompt_tokens: int
    completion_tokens: int


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    text: str | None = None
    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()
    usage: Usage | None = None
    error: ErrorObject | None = None


@dataclass(slots=True, kw_only=True)
class Heard:
    """All that came of one request. ``broken`` says how the connection failed, if it did."""

    asked: Asked
    started_at: Seconds
    ended_at: Seconds | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    times: list[Seconds] = field(default_factory=list)  # of each piece of text
    pieces: list[str] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    errors: list[ErrorObject] = field(default_factory=list)
    usage: Usage | None = None
    num_done: int = 0
    num_late: int = 0  # events after [DONE]
    left: bool = False
    broken: str = ""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to its proper end."""
        return self.status == _HTTP_OK and bool(self.finishes) and not (self.errors or self.broken)

    @property
    def has_failed(self) -> bool:
        """Whether it ended, not by the client's own wish, and without its answer."""
        return self.ended_at is not None and not (self.left or self.is_whole)

    def take(self, data: bytes, now: Seconds) -> None:
        """Take an event of a stream."""
        if self.num_done:
            self.num_late += 1
        if data == b"[DONE]":
            self.num_done += 1
        else:
            self.take_chunk(data, now)

    def take_chunk(self, data: bytes, now: Seconds) -> None:
        """Take the JSON of an event or of a whole answer. Raises msgspec.DecodeError."""
        chunk = msgspec.json.decode(data, type=_Chunk)
        if chunk.error is not None:
            self.errors.append(chunk.error)
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            part = choice.delta or choice.message
            text = choice.text or (part.content if part else None)
            if text:
                self.pieces.append(text)
                self.times.append(now)
            if choice.finish_reason is not None:
                self.finishes.append(choice.finish_reason)


class Crowd:
    """Clients of one server on this machine, and all that they heard, in order of asking."""

    def __init__(self, port: int, clock: MonotonicClock | None = None) -> None:
        self.heard: list[Heard] = []
        self._port = port
        self._clock = clock or MonotonicClock()

    async def ask(self, asked: Asked) -> Heard:
        """Send one request and record its answer; what goes wrong is in the record."""
        heard = Heard(asked=asked, started_at=self._clock.now())
        self.heard.append(heard)
        patience = min(ANSWER_SECONDS, asked.patience or ANSWER_SECONDS)
        try:
            async with asyncio.timeout(patience):
                await self._listen(heard)
        except TimeoutError:
            heard.left = asked.patience is not None
            heard.broken = "" if heard.left else f"no end within {patience:g} s"
        except (OSError, asyncio.IncompleteReadError) as error:
            heard.broken = f"{type(error).__name__}: {error}"
        except (ValueError, EventTooLong) as error:  # not HTTP, or not the JSON of the API
            heard.broken = f"protocol: {error}"
        heard.ended_at = self._clock.now()
        return heard

    async def closed_loop(
        self, clients: int, next_asked: Callable[[], Asked], stop: asyncio.Event
    ) -> None:
        """Keep ``clients`` requests running until ``stop``; return when the last has ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(next_asked, stop))

    async def open_loop(self, arrivals: Iterable[tuple[Seconds, Asked]]) -> None:
        """Send each request at its time (seconds from now, rising), however the others do."""
        begun = self._clock.now()
        async with asyncio.TaskGroup() as group:
            for due, asked in arrivals:
                await asyncio.sleep(max(0.0, begun + due - self._clock.now()))
                group.create_task(self.ask(asked))

    async def _client(self, next_asked: Callable[[], Asked], stop: asyncio.Event) -> None:
        while not stop.is_set():
            heard = await self.ask(next_asked())
            if heard.has_failed:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _listen(self, heard: Heard) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_LINE_BYTES)
        try:
            writer.write(_request(heard.asked))
            heard.status, heard.headers = await _read_head(reader)
            is_stream = heard.headers.get("content-type", "").startswith("text/event-stream")
            if is_stream:
                await self._listen_to_events(heard, reader)
            else:
                body = b"".join([piece async for piece in _body(reader, heard.headers)])
                heard.take_chunk(body, self._clock.now())
        finally:
            writer.transport.abort()

    async def _listen_to_events(self, heard: Heard, reader: asyncio.StreamReader) -> None:
        events = SseParser()
        enough = heard.asked.enough
        async for piece in _body(reader, heard.headers):
            now = self._clock.now()
            for data in events.feed(piece):
                heard.take(data, now)
            if enough is not None and len(heard.times) >= enough and not heard.finishes:
                heard.left = True
                return


async def get(port: int, path: str) -> tuple[int, str]:
    """GET from a server on this machine: status and text. Raises OSError, TimeoutError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LINE_BYTES)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(10):
            status, headers = await _read_head(reader)
            body = b"".join([piece async for piece in _body(reader, headers)])
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError(f"GET {path}: {error}") from error
    finally:
        writer.transport.abort()
    return status, body.decode()


def metric(exposition: str, name: str, **labels: str) -> float:
    """Return the sum of a metric's series with these labels in a Prometheus text."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in exposition.splitlines()
        if line.startswith((f"{name} ", f"{name}{{")) and all(label in line for label in wanted)
    )


def _request(asked: Asked) -> bytes:
    body: dict[str, object] = {
        "max_tokens": asked.max_tokens,
        "temperature": asked.temperature,
        "seed": asked.seed,
        "ignore_eos": not asked.may_stop,
    }
    if asked.chat:
        body["messages"] = [{"role": "user", "content": asked.prompt}]
    else:
        body["prompt"] = asked.prompt
    if asked.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    content = msgspec.json.encode(body)
    path = "/v1/chat/completions" if asked.chat else "/v1/completions"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    return int(lines[0].split()[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """Yield a body as it comes. Raises IncompleteReadError where it ends too early."""
    if headers.get("transfer-encoding", "") != "chunked":
        yield await reader.readexactly(int(headers.get("content-length", "0")))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
