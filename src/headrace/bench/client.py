"""One generation over the OpenAI API, timed: what to ask, what came back and when.

Servers differ; this takes what all of them agree on. Tokens are counted by the server's
``usage`` where it sends one, else by the pieces of text that arrived.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from headrace.bench.answer import Answer, Collector, describe_error
from headrace.bench.config import Endpoint, JsonValue, Target
from headrace.bench.http import (
    Connection,
    ExchangeFailed,
    FailureKind,
    Sink,
    connect,
    parse_base_url,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.clock import Clock
    from headrace.types import Seconds, Tokens

MAX_IDLE_CONNECTIONS = 1024

Message: TypeAlias = tuple[str, str]
"""Role and content."""


class _Card(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: tuple[_Card, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A generation to ask for. ``cut_after`` is the number of pieces after which to go away."""

    prompt: str | Sequence[Message]
    max_tokens: Tokens
    endpoint: Endpoint = Endpoint.COMPLETIONS
    stream: bool = True
    cut_after: int | None = None  # 0: as soon as the answer's head has come
    fields: Mapping[str, JsonValue] = field(default_factory=dict)  # any other field of the body


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a generation did not end well."""

    kind: FailureKind
    message: str
    status: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a call. Times are on the client's clock."""

    started_at: Seconds
    ended_at: Seconds
    piece_times: Sequence[Seconds] = ()  # when each piece of text arrived; the first gives TTFT
    text: str = ""
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens | None = None  # by the server's usage
    cached_tokens: Tokens | None = None
    finish_reason: str | None = None
    cut: bool = False  # we went away, as the call said
    failure: Failure | None = None


class Client:
    """Sends calls to one server. Owns the idle connections, where they are kept alive."""

    def __init__(self, *, target: Target, model: str, clock: Clock) -> None:
        self._target = target
        self._origin = parse_base_url(target.base_url)
        self._model = model
        self._clock = clock
        self._idle: list[Connection] = []

    async def generate(self, call: Call) -> Outcome:
        """Send the call and wait for its end. What goes wrong is in the outcome."""
        request = self._encode(call)
        started_at = self._clock.now()
        answer, failure = Answer(), None
        try:
            async with asyncio.timeout(self._target.request_timeout):
                answer = await self._send(request, call)
        except ExchangeFailed as error:
            failure = Failure(kind=error.kind, message=error.message, status=error.status)
        except TimeoutError:
            message = f"no end within {self._target.request_timeout:g} s"
            failure = Failure(kind=FailureKind.TIMEOUT, message=message)
        return Outcome(
            started_at=started_at,
            ended_at=self._clock.now(),
            piece_times=answer.times,
            text="".join(answer.texts),
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            cached_tokens=answer.cached_tokens,
            finish_reason=answer.finish_reason,
            cut=answer.cut,
            failure=failure,
        )

    async def get(self, path: str) -> bytes:
        """GET a path from the server's root. Raises ExchangeFailed."""
        sink = _Whole()
        connection = await connect(self._origin, timeout=self._target.connect_timeout)
        try:
            async with asyncio.timeout(self._target.request_timeout):
                await connection.exchange(self._head("GET", path, "", keep_alive=False), sink)
        except TimeoutError:
            raise ExchangeFailed(FailureKind.TIMEOUT, f"no answer to GET {path}") from None
        finally:
            connection.abort()
        body = b"".join(sink.pieces)
        if sink.status >= 400:
            raise ExchangeFailed(FailureKind.STATUS, describe_error(body), status=sink.status)
        return body

    async def list_models(self) -> tuple[str, ...]:
        """Return the names that the server serves. Raises ExchangeFailed."""
        body = await self.get(f"{self._origin.root}/models")
        try:
            listing = msgspec.json.decode(body, type=_ModelList)
        except msgspec.DecodeError as error:
            raise ExchangeFailed(FailureKind.PROTOCOL, f"/models: {error}") from error
        return tuple(card.id for card in listing.data)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _send(self, request: bytes, call: Call) -> Answer:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_open:
                continue
            try:
                return await self._exchange(connection, request, call)
            except ExchangeFailed as error:
                if error.kind is not FailureKind.DISCONNECT or error.status:
                    raise  # only a connection that went stale while idle is tried anew
        fresh = await connect(self._origin, timeout=self._target.connect_timeout)
        return await self._exchange(fresh, request, call)

    async def _exchange(self, connection: Connection, request: bytes, call: Call) -> Answer:
        sink = Collector(
            connection=connection,
            clock=self._clock,
            stream=call.stream,
            cut_after=call.cut_after,
        )
        try:
            await connection.exchange(request, sink)
        finally:
            keep = self._target.keep_alive and connection.reusable and connection.is_open
            if keep and len(self._idle) < MAX_IDLE_CONNECTIONS:
                self._idle.append(connection)
            else:
                connection.abort()
        return sink.finish()

    def _encode(self, call: Call) -> bytes:
        body: dict[str, JsonValue] = {"model": self._model, "max_tokens": call.max_tokens}
        if call.endpoint is Endpoint.CHAT:
            body["messages"] = _messages(call.prompt)
        elif isinstance(call.prompt, str):
            body["prompt"] = call.prompt
        else:
            raise ValueError("messages go to the chat endpoint")
        if call.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        content = msgspec.json.encode(body | dict(call.fields))
        about = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        path = f"{self._origin.root}{call.endpoint.path}"
        return self._head("POST", path, about, keep_alive=self._target.keep_alive) + content

    def _head(self, method: str, path: str, about: str, *, keep_alive: bool) -> bytes:
        key = self._target.api_key
        lines = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._origin.authority}\r\n",
            "" if keep_alive else "Connection: close\r\n",
            f"Authorization: Bearer {key}\r\n" if key else "",
            *(f"{name}: {value}\r\n" for name, value in self._target.headers.items()),
            about,
            "\r\n",
        )
        return "".join(lines).encode("latin-1")


class _Whole(Sink):
    """Keeps a small answer."""

    def __init__(self) -> None:
        self.status = 0
        self.pieces: list[bytes] = []

    def head(self, status: int) -> None:
        self.status = status

    def body(self, piece: bytes) -> None:
        self.pieces.append(piece)


def _messages(prompt: str | Sequence[Message]) -> list[JsonValue]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": role, "content": content} for role, content in prompt]
