"""Takes one answer of the API as its bytes arrive: what it says, and when each piece came.

Knows the shapes of OpenAI's answers and streams as far as servers agree on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from headrace.bench.http import Connection, ExchangeFailed, FailureKind, Sink
from headrace.bench.sse import EventTooLong, SseParser

if TYPE_CHECKING:
    from headrace.clock import Clock
    from headrace.types import Seconds, Tokens

MAX_MESSAGE_CHARS = 300  # of a server's error body that is kept
MAX_ANSWER_BYTES = 64 << 20
HTTP_ERRORS_FROM = 400


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Text(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    """A chunk of a stream, or a whole answer: one shape reads both, of both endpoints."""

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: dict[str, object] | str | None = None


@dataclass(slots=True, kw_only=True)
class Answer:
    """What has arrived of an answer."""

    texts: list[str] = field(default_factory=list)
    times: list[Seconds] = field(default_factory=list)  # one for each text
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    finish_reason: str | None = None
    ended_well: bool = False  # [DONE] was seen
    cut: bool = False  # we went away, as we were told


class Collector(Sink):
    """Gathers one answer, and goes away in the middle of it where it is told to.

    ``cut_after`` is the number of pieces after which to go; 0 is as soon as the head has come.
    """

    def __init__(
        self, *, connection: Connection, clock: Clock, stream: bool, cut_after: int | None
    ) -> None:
        self.answer = Answer()
        self._connection = connection
        self._clock = clock
        self._stream = stream
        self._cut_after = cut_after
        self._events = SseParser()
        self._whole = bytearray()  # the body, where it is no stream
        self._status = 0

    def head(self, status: int) -> None:
        self._status = status
        if self._cut_after == 0 and status < HTTP_ERRORS_FROM:
            self._cut()

    def body(self, piece: bytes) -> None:
        if self.answer.cut:
            return
        if self._status >= HTTP_ERRORS_FROM or not self._stream:
            self._whole += piece
            if len(self._whole) > MAX_ANSWER_BYTES:
                raise ExchangeFailed(FailureKind.PROTOCOL, "an answer without end")
            return
        now = self._clock.now()
        try:
            events = self._events.feed(piece)
        except EventTooLong as error:
            raise ExchangeFailed(FailureKind.PROTOCOL, str(error)) from error
        for event in events:
            self._take_event(event, now)

    def finish(self) -> Answer:
        """Check the whole answer, once it has ended, and return it. Raises ExchangeFailed."""
        answer = self.answer
        if answer.cut:
            return answer
        if self._status >= HTTP_ERRORS_FROM:
            message = describe_error(bytes(self._whole)) or "no message"
            raise ExchangeFailed(FailureKind.STATUS, message, status=self._status)
        if not self._stream:
            self._take_chunk(_decode(bytes(self._whole)), self._clock.now())
        elif not answer.ended_well and answer.finish_reason is None:
            message = "the stream ended without a finish_reason and without [DONE]"
            raise ExchangeFailed(FailureKind.DISCONNECT, message, status=self._status)
        return answer

    def _take_event(self, event: bytes, now: Seconds) -> None:
        if event == b"[DONE]":
            self.answer.ended_well = True
        elif not self.answer.cut:
            self._take_chunk(_decode(event), now)

    def _take_chunk(self, chunk: _Chunk, now: Seconds) -> None:
        answer = self.answer
        if chunk.error is not None:
            message = describe_error(msgspec.json.encode(chunk.error))
            raise ExchangeFailed(FailureKind.STREAM_ERROR, message, status=self._status)
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            answer.prompt_tokens = chunk.usage.prompt_tokens
            answer.output_tokens = chunk.usage.completion_tokens
            answer.cached_tokens = details.cached_tokens if details else None
        for choice in chunk.choices:
            answer.finish_reason = choice.finish_reason or answer.finish_reason
            text = _text_of(choice)
            if text:
                answer.texts.append(text)
                answer.times.append(now)
        limit = self._cut_after
        if limit is not None and len(answer.times) >= limit and self._stream:
            self._cut()

    def _cut(self) -> None:
        self.answer.cut = True
        self._connection.cut()


def describe_error(body: bytes) -> str:
    """Return the message of an error body: OpenAI's shape, a plain string, or what there is."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        value = None
    for key in ("error", "message", "detail"):
        if isinstance(value, dict):
            value = value.get(key, value)
    text = value if isinstance(value, str) else body.decode(errors="replace")
    return " ".join(text.split())[:MAX_MESSAGE_CHARS]


def _decode(data: bytes) -> _Chunk:
    try:
        return msgspec.json.decode(data, type=_Chunk)
    except msgspec.DecodeError as error:
        shown = data[:MAX_MESSAGE_CHARS].decode(errors="replace")
        raise ExchangeFailed(FailureKind.PROTOCOL, f"{error} in {shown!r}") from error


def _text_of(choice: _Choice) -> str:
    if choice.text:
        return choice.text
    part = choice.delta or choice.message
    if part is None:
        return ""
    return part.content or part.reasoning_content or ""
