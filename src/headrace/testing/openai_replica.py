"""A scripted OpenAI server: what a gateway in front of foreign replicas is tried on.

Its answers are deterministic: word i of an answer is a function of the prompt and i, so that any
text that reaches a client can be checked. It has no model, tokenises at white space, and fails
where its script says so. ``headrace fake-replica`` runs it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from headrace.errors import EngineFault, ModelNotFound, NotReady, RouteNotFound
from headrace.server.gateway.front import Tasks
from headrace.server.gateway.http.limits import HttpLimits
from headrace.server.gateway.http.listener import Listener
from headrace.server.gateway.http.messages import EVENT_STREAM, JSON, Response, error_json
from headrace.testing.openai_dialects import beginning_of, metrics_page
from headrace.testing.openai_texts import AnswerText, word_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from headrace.clock import Clock
    from headrace.errors import RequestError
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest, RequestHead
    from headrace.types import Seconds

DEFAULT_TOKENS: Final = 16
_HUGE_BYTES: Final = 300 << 20
_PIECE_BYTES: Final = 1 << 18
_DONE: Final = b"data: [DONE]\n\n"
_EXIT_DIED: Final = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How a replica behaves. Numbers of tokens count within one answer; None: never."""

    model: str = "fake"
    server: str = "fake"  # whose manners it has: see openai_dialects.py
    others: int = 0  # requests that its metrics show beside those it has
    latency: Seconds = 0.0  # before the first byte of an answer
    jitter: Seconds = 0.0  # up to so much more, by a hash of the completion's number
    itl: Seconds = 0.0  # between two tokens of a stream
    drip: float | None = None  # bytes/s of a stream, each by itself
    api_key: str = ""  # demanded of every completion, if not empty
    max_body_bytes: int | None = None  # longer completions get 413
    status: int = 200  # of every completion
    fail_first: int = 0  # so many completions are answered with fail_status
    fail_rate: float = 0.0  # and this share of the others, by a hash of their number
    fail_status: int = 500
    die_at_request: int | None = None  # that completion ends the process, unanswered
    die_after: int | None = None  # tokens, then the process ends
    hang_after: int | None = None  # tokens, then nothing more comes
    truncate_after: int | None = None  # tokens, then the answer ends without a finish
    reset_after: int | None = None  # tokens, then the connection is cut
    bad_json_at: int | None = None  # this token's event is no JSON
    repeat_at: int | None = None  # this token's event comes twice
    wrong_id_at: int | None = None  # this token's event has the id of another answer
    huge_line: bool = False  # a line of 300 MB instead of the first token
    busy_retry_after: int | None = None  # seconds; every completion gets 429
    health_fail_after: int | None = None  # looks at /health that go well; later ones get 503


class _Options(Struct):
    include_usage: bool = False


class _Body(Struct):
    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    stream_options: _Options | None = None
    continue_final_message: bool = False
    return_token_ids: bool = False


_decode = msgspec.json.Decoder(_Body).decode


@dataclass(slots=True)
class Tally:
    """What a replica saw, for tests."""

    completions: int = 0  # begun
    finished: int = 0  # answered to the end
    abandoned: int = 0  # whose client left before
    health_looks: int = 0
    tokens: int = 0  # of streams
    heads: list[RequestHead] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


class OpenAIReplica:
    """Implements Application. ``script`` may be replaced while it runs."""

    def __init__(
        self, script: Script, *, clock: Clock, die: Callable[[], None] | None = None
    ) -> None:
        self.script = script
        self.tally = Tally()
        self._die = die or _end_process
        self._tasks = Tasks()
        self._stop = asyncio.get_running_loop().create_future()
        limits = HttpLimits(max_send_buffer_bytes=1 << 30, idle_timeout=5)
        self._listener = Listener(
            limits=limits, clock=clock, application=self, count=lambda _number: None
        )

    async def run(self, sock: socket.socket) -> None:
        """Answer on a bound socket, until ``close``."""
        await self._listener.start(sock)
        try:
            await self._tasks.run(self._stop)
        finally:
            self._listener.close()

    def close(self) -> None:
        """End, cutting every connection."""
        self._listener.close()
        if not self._stop.done():
            self._stop.set_result(None)

    def refuse(self, head: RequestHead) -> RequestError | None:
        """See Application."""
        return None

    def refused(self, error: RequestError, exchange: Exchange) -> None:
        """See Application."""
        exchange.fail(error)

    def serve(self, request: HttpRequest, exchange: Exchange) -> None:
        """See Application."""
        match request.head.method, request.head.path:
            case "GET", "/health":
                self._health(exchange)
            case "GET", "/v1/models":
                script = self.script
                card = {"id": script.model, "object": "model", "owned_by": script.server}
                exchange.reply(_json({"object": "list", "data": [card]}))
            case "GET", "/metrics":
                self._metrics(exchange)
            case "POST", ("/v1/chat/completions" | "/v1/completions") as path:
                self._begin(request, exchange, is_chat=path == "/v1/chat/completions")
            case _:
                raise RouteNotFound(f"there is nothing at {request.head.path}")

    def _health(self, exchange: Exchange) -> None:
        self.tally.health_looks += 1
        limit = self.script.health_fail_after
        if limit is not None and self.tally.health_looks > limit:
            raise NotReady("the script says so")
        exchange.reply(Response(200, b""))

    def _metrics(self, exchange: Exchange) -> None:
        tally, script = self.tally, self.script
        running = tally.completions - tally.finished - tally.abandoned + script.others
        page = metrics_page(script.server, running=running, waiting=0, tokens=tally.tokens)
        exchange.reply(Response(404, b"") if page is None else Response(200, page, b"text/plain"))

    def _begin(self, request: HttpRequest, exchange: Exchange, *, is_chat: bool) -> None:
        tally, script = self.tally, self.script
        tally.completions += 1
        tally.heads.append(request.head)
        tally.bodies.append(bytes(request.body))
        if tally.completions == script.die_at_request:
            self._die()
            return
        refusal = self._refusal(tally.completions, request)
        if refusal is not None:
            exchange.reply(refusal)
            return
        body = _decode(request.body)
        if body.model not in (None, script.model):
            raise ModelNotFound(f"there is only {script.model}", param="model")
        messages, prompt = bytes(body.messages), bytes(body.prompt)
        prompt = (messages or prompt) if is_chat else (prompt or messages)
        beginning = beginning_of(script.server, prompt, goes_on=body.continue_final_message)
        tells_ids = body.return_token_ids and script.server == "vllm"
        text = AnswerText(script.model, beginning, is_chat=is_chat, tells_ids=tells_ids)
        delay = script.latency + script.jitter * _share(b"late %d" % tally.completions)
        answer = _Answering(script, text, body, exchange, tally=tally, delay=delay, die=self._die)
        self._tasks.spawn(self._answer(answer), exchange)

    async def _answer(self, answer: _Answering) -> None:
        try:
            await answer.run()
        except asyncio.CancelledError:
            self.tally.abandoned += 1
            raise
        self.tally.finished += 1

    def _refusal(self, number: int, request: HttpRequest) -> Response | None:
        """Return the refusal of completion ``number``, if the script wants one."""
        script = self.script
        if script.api_key and not _has_key(request.head, script.api_key):
            return _refuse(401)
        if script.max_body_bytes is not None and len(request.body) > script.max_body_bytes:
            return _refuse(413)
        if script.busy_retry_after is not None:
            return _refuse(429, (b"retry-after", b"%d" % script.busy_retry_after))
        if number <= script.fail_first or _share(b"%d" % number) < script.fail_rate:
            return _refuse(script.fail_status)
        return None if script.status == 200 else _refuse(script.status)


class _Answering:
    """One answer, token by token."""

    def __init__(
        self,
        script: Script,
        text: AnswerText,
        body: _Body,
        exchange: Exchange,
        *,
        tally: Tally,
        delay: Seconds,
        die: Callable[[], None],
    ) -> None:
        limit = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
        self._script = script
        self._text = text
        self._num_tokens = DEFAULT_TOKENS if limit is None else limit
        self._finish = "stop" if limit is None else "length"
        self._is_stream = body.stream is True
        self._wants_usage = body.stream_options is not None and body.stream_options.include_usage
        self._exchange = exchange
        self._tally = tally
        self._delay = delay
        self._die = die

    async def run(self) -> None:
        """Answer, or fail as the script says."""
        if self._delay:
            await asyncio.sleep(self._delay)
        if self._is_stream:
            await self._stream()
        elif not await self._fails_at(self._num_tokens):
            self._exchange.reply(_json(self._text.whole(self._num_tokens, self._finish)))

    async def _stream(self) -> None:
        script = self._script
        if script.huge_line:
            await self._send_huge_line()
            return
        for index in range(self._num_tokens):
            if index and script.itl:
                await asyncio.sleep(script.itl)
            if await self._fails_at(index):
                return
            self._tally.tokens += 1
            await self._write(self._event(index))
        if await self._fails_at(self._num_tokens):
            return
        if script.drip is None:
            self._exchange.write(self._end(), EVENT_STREAM, last=True)
        else:
            await self._write(self._end())
            self._exchange.end()

    def _event(self, index: int) -> bytes:
        """The event of a token, with what the script does to it."""
        script = self._script
        event = self._text.event(index, None)
        if index == script.bad_json_at:
            event = event.replace(b'"choices":[', b'"choices":[}', 1)
        if index == script.wrong_id_at:
            event = event.replace(b"cmpl-", b"cmpl-f0e1", 1)
        return event * (2 if index == script.repeat_at else 1)

    async def _write(self, data: bytes) -> None:
        rate = self._script.drip
        if rate is None:
            self._exchange.write(data, EVENT_STREAM)
            return
        for byte in data:
            self._exchange.write(bytes((byte,)), EVENT_STREAM)
            await asyncio.sleep(1 / rate)

    def _end(self) -> bytes:
        end = self._text.event(self._num_tokens, self._finish)
        if self._wants_usage:
            end += self._text.usage_event(self._num_tokens)
        return end + _DONE

    async def _fails_at(self, index: int) -> bool:
        """Fail if it is time; return whether the answer is over."""
        script = self._script
        if script.die_after is not None and index >= script.die_after:
            self._die()
            return True
        if script.hang_after is not None and index >= script.hang_after:
            await asyncio.Event().wait()
        if script.reset_after is not None and index >= script.reset_after:
            self._exchange.cut()
            return True
        if script.truncate_after is None or index < script.truncate_after:
            return False
        if self._is_stream:
            self._exchange.end()
        else:
            self._exchange.reply(Response(200, b'{"choices":[{"text":"cut o'))
        return True

    async def _send_huge_line(self) -> None:
        piece = b"x" * _PIECE_BYTES
        self._exchange.write(b"data: ", EVENT_STREAM)
        for _ in range(_HUGE_BYTES // _PIECE_BYTES):
            self._exchange.write(piece, EVENT_STREAM)
            await asyncio.sleep(0)
            if self._exchange.closed:
                return
        self._exchange.end()


def expected_text(prompt: object, num_tokens: int) -> str:
    """Return what any replica answers to ``messages`` or ``prompt``, as ``json.dumps`` sends it."""
    seed = hashlib.sha256(json.dumps(prompt).encode()).digest()
    return "".join(word_of(seed, index) for index in range(num_tokens))


def _share(name: bytes) -> float:
    """A number from 0 to 1 that looks drawn and is the same again."""
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "little") / 2**32


def _has_key(head: RequestHead, key: str) -> bool:
    return head.headers.get(b"authorization", b"") == b"Bearer " + key.encode()


def _refuse(status: int, *headers: tuple[bytes, bytes]) -> Response:
    body = error_json(EngineFault("the script says so"))
    return Response(status, body, JSON, headers)


def _json(content: object) -> Response:
    return Response(200, msgspec.json.encode(content))


def _end_process() -> None:
    os._exit(_EXIT_DIED)  # at once, as a crash would: no goodbye to anybody
