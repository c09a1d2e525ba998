"""A gateway on a loopback socket with a scripted replica, and a raw client for it.

The client parses answers with h11, which is strict: an answer that is no HTTP fails the test.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import random
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h11
import pytest
import uvloop

from headrace.clock import MonotonicClock
from headrace.monitoring import table
from headrace.monitoring.metrics import Registry
from headrace.server.gateway.app import Gateway, Outside, build_gateway
from headrace.server.gateway.config import GatewayConfig
from headrace.server.keys import Keys
from headrace.testing.fake_replica import ScriptedReplica
from headrace.types import FinishReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from headrace.model.text import TextModel

LIMIT_SECONDS = 20.0
CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"


class SteppedClock:
    """The real clock, which a test may put forward. It never stands still or goes back."""

    def __init__(self) -> None:
        self._clock = MonotonicClock()
        self._ahead = 0.0

    def now(self) -> float:
        return self._clock.now() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


@dataclass
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the server says
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of an OpenAI-shaped body, which it must be."""
        body = self.json
        assert set(body) == {"error"}, body
        assert set(body["error"]) == {"message", "type", "param", "code"}, body
        assert len(body["error"]["message"]) <= 400
        return dict(body["error"])

    @property
    def events(self) -> list[Any]:
        """The events of a stream, decoded, without [DONE], which must be the last."""
        assert self.headers["content-type"].startswith("text/event-stream")
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == ""
        data = [block.removeprefix("data: ") for block in blocks if not block.startswith(":")]
        assert data.pop() == "[DONE]"
        return [json.loads(item) for item in data]


@dataclass
class Client:
    """One raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    parser: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> None:
        """Send a well-formed request. Keyword ``x_api_key`` becomes the field ``x-api-key``."""
        content = b"" if body is None else body if isinstance(body, bytes) else _encode(body)
        fields = {"host": "test", **{name.replace("_", "-"): v for name, v in headers.items()}}
        if body is not None:
            fields.setdefault("content-type", "application/json")
            fields["content-length"] = str(len(content))
        head = f"{method} {path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.send(head.encode() + b"\r\n" + content)

    async def answer(self, method: str = "GET") -> Answer:
        """Read one response."""
        parser = self.parser
        if parser.our_state is h11.DONE:
            parser.start_next_cycle()
        parser.send(h11.Request(method=method, target="/", headers=[("host", "test")]))
        parser.send(h11.EndOfMessage())
        head: h11.Response | None = None
        body = b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await self.reader.read(65536))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode() for name, value in head.headers}
                return Answer(head.status_code, headers, body)
            elif isinstance(event, h11.InformationalResponse):
                continue
            else:
                raise AssertionError(f"no answer: {event}")

    async def request(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        self.ask(method, path, body, **headers)
        return await self.answer(method)

    async def closed(self) -> bytes:
        """Read up to the end of the connection, which must come."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Leave without a word."""
        self.writer.transport.abort()


def _encode(body: object) -> bytes:
    return json.dumps(body).encode()


@dataclass
class Served:
    """A running gateway."""

    gateway: Gateway
    replica: ScriptedReplica
    clock: SteppedClock
    registry: Registry
    text: TextModel
    port: int
    task: asyncio.Task[None]
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def request(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Ask on a fresh connection."""
        client = await self.connect()
        answer = await client.request(method, path, body, **headers)
        client.close()
        return answer

    async def raw(self, data: bytes) -> bytes:
        """Send bytes on a fresh connection, return all that comes until the server closes it."""
        client = await self.connect()
        client.send(data)
        return await client.closed()

    def encode(self, text: str) -> list[int]:
        return self.text.tokenizer.encode(text)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until a condition holds; the time limit of the test ends it."""
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on but the loop
            await asyncio.sleep(0)

    async def answer_with(
        self, text: str, *, finish: FinishReason = FinishReason.STOP, cached_tokens: int = 0
    ) -> None:
        """Answer the next request with a text, token by token, and an end-of-sequence token."""
        request = await self.replica.next_request()
        for token in self.encode(text):
            self.replica.say(request, [token], cached_tokens=cached_tokens)
        last = [self.text.tokenizer.eos_id] if finish is FinishReason.STOP else []
        self.replica.say(request, last, finish=finish, cached_tokens=cached_tokens)

    async def chat(self, answer: str = "Hello.", **fields: object) -> Answer:
        """Ask on a fresh connection while the replica answers with a text."""
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        talk = asyncio.create_task(self.request("POST", CHAT, body))
        await self.answer_with(answer)
        return await talk


@asynccontextmanager
async def serving(
    text: TextModel,
    config: GatewayConfig | None = None,
    *,
    keys: Sequence[str] | Keys = (),
    connect: bool = True,
) -> AsyncIterator[Served]:
    """Run a gateway; at the end nothing of any request may be left."""
    clock, registry = SteppedClock(), Registry(table.GATEWAY_TABLE)
    gateway = build_gateway(
        config or GatewayConfig(),
        text=text,
        names=("tiny", "org/alias"),
        keys=keys if isinstance(keys, Keys) else Keys(keys),
        outside=Outside(clock, random.Random(0).getrandbits, registry),
    )
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(256)
    replica = ScriptedReplica(gateway.traffic, vocab_size=text.tokenizer.vocab_size)
    task = asyncio.create_task(gateway.serve(sock))
    served = Served(gateway, replica, clock, registry, text, sock.getsockname()[1], task)
    if connect:
        replica.connect()
    try:
        yield served
        for client in served.clients:
            client.close()
        await served.until(lambda: registry.value(table.GENERATIONS_RUNNING) == 0)
        if not task.done():
            await gateway.drain(0.5)
            await task
        await served.until(lambda: gateway.listener.num_connections == 0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def on_both_loops(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Make a coroutine function two tests, on asyncio's loop and on uvloop."""

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    @functools.wraps(test)
    def wrapper(run: Callable[[Coroutine[None, None, None]], None], **arguments: object) -> None:
        run(asyncio.wait_for(test(**arguments), LIMIT_SECONDS))

    own = inspect.signature(test)
    run_parameter = inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY)
    wrapper.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), run_parameter]
    )
    return wrapper
