"""A foreign gateway and scripted replicas in one process, on loopback sockets, and a raw client."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.clock import MonotonicClock, wall_time
from headrace.monitoring import table
from headrace.monitoring.journal import Journal
from headrace.monitoring.metrics import Registry
from headrace.server.gateway.app import Outside
from headrace.server.gateway.config import GatewayConfig
from headrace.server.gateway.foreign.address import parse_replica
from headrace.server.gateway.foreign.app import ForeignGateway, build_foreign_gateway
from headrace.server.gateway.foreign.config import ForeignConfig
from headrace.server.gateway.routes import Keys
from headrace.testing.openai_replica import OpenAIReplica, Script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"

QUICK = ForeignConfig(poll_period=0.02, sweep_period=0.01, poll_timeout=0.5, connect_timeout=0.5)


class SteppedClock:
    """The real clock, which a test may put forward. It never stands still or goes back."""

    def __init__(self) -> None:
        self._clock = MonotonicClock()
        self._ahead = 0.0

    def now(self) -> float:
        return self._clock.now() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


def loopback(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(256)
    return sock


@dataclass
class Answer:
    """A whole response: its head's fields and its body, without chunk framing."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut_off: bool = False

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the server says
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, decoded, without [DONE], which must be the last."""
        data = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n")]
        assert data.pop() == b""
        assert data.pop() == b"[DONE]"
        return [json.loads(part) for part in data]

    @property
    def text(self) -> str:
        choices = [event["choices"][0] for event in self.events if event.get("choices")]
        return "".join(
            (each["delta"].get("content") or "") if "delta" in each else each["text"]
            for each in choices
        )

    @property
    def finishes(self) -> list[str]:
        choices = [event["choices"][0] for event in self.events if event.get("choices")]
        return [each["finish_reason"] for each in choices if each["finish_reason"]]


@dataclass
class Replica:
    """A scripted replica. ``stop`` cuts all its connections and frees its port."""

    fake: OpenAIReplica
    port: int
    task: asyncio.Task[None]

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def stop(self) -> None:
        self.fake.close()
        await asyncio.wait([self.task])


async def start_replica(script: Script, port: int = 0) -> Replica:
    sock = loopback(port)
    fake = OpenAIReplica(script, clock=MonotonicClock(), die=lambda: fake.close())
    replica = Replica(fake, sock.getsockname()[1], asyncio.create_task(fake.run(sock)))
    await asyncio.sleep(0)
    return replica


@dataclass
class Rig:
    """A gateway with its replicas."""

    gateway: ForeignGateway
    replicas: list[Replica]
    registry: Registry
    clock: SteppedClock
    port: int
    serving: asyncio.Task[None]
    key: str = ""
    extra: list[Replica] = field(default_factory=list)

    async def ask(
        self, path: str = CHAT, body: object = None, *, port: int = 0, **headers: str
    ) -> Answer:
        """POST on a fresh connection; the whole answer."""
        reader, writer = await self.send(path, body, port=port, **headers)
        answer = await read_answer(reader)
        writer.close()
        return answer

    async def send(
        self, path: str, body: object = None, *, port: int = 0, **headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        head = f"{method} {path} HTTP/1.1\r\nhost: test\r\n"
        if self.key:
            head += f"authorization: Bearer {self.key}\r\n"
        head += "".join(f"{n.replace('_', '-')}: {value}\r\n" for n, value in headers.items())
        if body is not None:
            head += "content-type: application/json\r\nx-secret: mine\r\n"
            head += f"content-length: {len(content)}\r\n"
        writer.write(head.encode() + b"\r\n" + (b"" if body is None else content))
        return reader, writer

    async def chat(self, text: str = "hi", **fields: object) -> Answer:
        """A streamed chat, unless ``stream=False``."""
        return await self.ask(CHAT, chat(text, **fields))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until a condition holds; the time limit of the test ends it."""
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on but the loop
            await asyncio.sleep(0.001)

    async def until_ready(self, number: int) -> None:
        """Wait until so many replicas are connected, over all pools."""
        pools = self.gateway.pools
        await self.until(lambda: sum(len(each.router.replicas) for each in pools.pools) == number)

    def count(self, metric: table.Metric, *labels: str) -> float:
        return self.registry.value(metric, *labels)


def chat(text: str = "hi", **fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {"model": "fake", "messages": messages, "stream": True, **fields}


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    number = int(status.split()[1])
    if "content-length" in headers:
        return Answer(number, headers, await reader.readexactly(int(headers["content-length"])))
    body = b""
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(number, headers, body, cut_off=True)
    return Answer(number, headers, body)


@asynccontextmanager
async def serving(
    *scripts: Script,
    config: GatewayConfig | None = None,
    foreign: ForeignConfig = QUICK,
    urls: Iterable[str] = (),
    options: Sequence[str] = (),
    key: str = "",
    ready: int | None = None,
) -> AsyncIterator[Rig]:
    """Run a replica for each script and a gateway before them; at the end nothing may be left."""
    replicas = [await start_replica(script) for script in scripts]
    clock, registry = SteppedClock(), Registry(table.GATEWAY_TABLE)
    each_option = [*options, *("" for _ in replicas)]  # what follows their URLs
    named = [
        f"http://127.0.0.1:{each.port}{option}"
        for each, option in zip(replicas, each_option, strict=False)
    ] + list(urls)
    gateway = build_foreign_gateway(
        config or GatewayConfig(policy="round_robin"),
        foreign,
        [parse_replica(url) for url in named],
        keys=Keys((key,) if key else ()),
        outside=Outside(
            clock,
            random.Random(0).getrandbits,
            registry,
            journal=Journal(unix_time=wall_time, source="router"),
            cache_secret=b"s" * 32,
        ),
    )
    sock = loopback()
    task = asyncio.create_task(gateway.serve(sock))
    rig = Rig(gateway, replicas, registry, clock, sock.getsockname()[1], task, key)
    try:
        await rig.until_ready(len(replicas) if ready is None else ready)
        yield rig
        await rig.until(lambda: registry.value(table.GENERATIONS_RUNNING) == 0)
        check_empty(gateway)
        if not task.done():
            await gateway.drain(1)
            await task
    finally:
        task.cancel()
        await asyncio.wait([task])
        for replica in (*replicas, *rig.extra):
            await replica.stop()


def check_empty(gateway: ForeignGateway) -> None:
    for pool in gateway.pools.pools:
        pool.router.check_integrity()
        assert pool.router.num_alive == 0
        assert not pool.passages
