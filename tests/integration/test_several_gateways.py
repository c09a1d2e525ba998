"""Two gateway processes on one port: hand-over under load, a gateway killed, one set of figures."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headrace.clock import MonotonicClock
from headrace.testing.server_process import running_server
from headrace.testing.streams import get, metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.testing.server_process import ServerProcess

CLIENTS = 8
BODY = json.dumps({"prompt": "a mill and a wheel " * 3, "max_tokens": 5}).encode()


@dataclass(slots=True)
class Try:
    """One request of a client."""

    started_at: float
    seconds: float = 0.0
    status: int = 0
    broken: str = ""


@dataclass(slots=True)
class Clients:
    """Each keeps its connection as long as the server lets it, or opens one for each request."""

    port: int
    keeps: bool
    tries: list[Try] = field(default_factory=list)
    clock: MonotonicClock = field(default_factory=MonotonicClock)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def failed(self) -> list[Try]:
        return [each for each in self.tries if each.status != 200]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())

    async def _client(self) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.stop.is_set():
            each = Try(self.clock.now())
            self.tries.append(each)
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self.port)
                async with asyncio.timeout(20):
                    kept = await self._ask(each, *connection)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                each.broken, kept = repr(error), False
            each.seconds = self.clock.now() - each.started_at
            if not kept and connection is not None:
                connection[1].transport.abort()
                connection = None
        if connection is not None:
            connection[1].transport.abort()

    async def _ask(
        self, each: Try, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        word = "keep-alive" if self.keeps else "close"
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: test\r\nConnection: {word}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        )
        writer.write(head.encode() + BODY)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answer.partition("content-length:")[2].split("\r\n")[0])
        await reader.readexactly(length)
        each.status = int(answer.split()[1])
        return self.keeps and "connection: close" not in answer


@pytest.fixture
def admin() -> Iterator[Path]:
    """The server's admin socket: other servers of these tests may run."""
    with tempfile.TemporaryDirectory(prefix="headrace-pair-") as directory:
        yield Path(directory) / "admin.sock"


@pytest.fixture
def pair(simulated: str, environment: Mapping[str, str], admin: Path) -> Iterator[ServerProcess]:
    quick = {
        "HEADRACE_SERVER_HANDOVER_SECONDS": "0.4",
        "HEADRACE_ENGINE_SIMULATED_SPEED": "0.3",
        "HEADRACE_SERVER_ADMIN": str(admin),
    }
    arguments = (simulated, "--gateways", "2", "--replicas", "2", "--drain-seconds", "10")
    with running_server(*arguments, environment={**environment, **quick}) as running:
        yield running


def gateways(server: ServerProcess) -> set[int]:
    return {pid for name, pid in server.children().items() if name.startswith("gateway")}


async def restart(what: str, admin: Path, environment: Mapping[str, str]) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        (sys.executable, "-P", "-m", "headrace", "restart", what, "--admin", admin),
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def watch_figures(port: int, stop: asyncio.Event, seen: list[float]) -> None:
    """Scrape again and again, on whichever gateway answers."""
    while not stop.is_set():
        try:
            status, text = await get(port, "/metrics")
        except OSError:
            continue  # a scrape too can hit a connection that is closed
        if status == 200:
            name = "headrace_http_requests_total"
            seen.append(metric(text, name, route="/v1/completions", status="200"))
        await asyncio.sleep(0.05)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("what", ["gateways", "replicas"])
def test_a_rolling_restart_fails_no_request(
    what: str, pair: ServerProcess, admin: Path, environment: Mapping[str, str]
):
    async def play() -> tuple[Clients, list[float]]:
        clients, seen = Clients(pair.port, keeps=True), [0.0]
        async with asyncio.TaskGroup() as group:
            group.create_task(clients.run())
            group.create_task(watch_figures(pair.port, clients.stop, seen))
            await asyncio.sleep(0.5)
            await restart(what, admin, environment)
            await asyncio.sleep(0.5)
            clients.stop.set()
        _, text = await get(pair.port, "/metrics")
        name = "headrace_http_requests_total"
        seen.append(metric(text, name, route="/v1/completions", status="200"))
        return clients, seen

    before = gateways(pair)
    clients, seen = asyncio.run(play())
    assert clients.failed == []
    assert len(clients.tries) > 40
    assert seen == sorted(seen)  # counters never go back
    assert seen[-1] == len(clients.tries)  # and forget nothing
    assert len(before) == len(gateways(pair)) == 2
    assert bool(before & gateways(pair)) == (what == "replicas")


@pytest.mark.timeout(120)
def test_a_killed_gateway_costs_what_it_had_and_no_other_request(pair: ServerProcess):
    async def play() -> tuple[Clients, float]:
        clients = Clients(pair.port, keeps=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(clients.run())
            await asyncio.sleep(1.0)
            killed_at = clients.clock.now()
            os.kill(min(gateways(pair)), signal.SIGKILL)
            await asyncio.sleep(4.0)
            clients.stop.set()
        return clients, killed_at

    clients, killed_at = asyncio.run(play())
    assert all(each.started_at < killed_at for each in clients.failed)
    assert len(clients.failed) <= CLIENTS
    after = [each for each in clients.tries if each.started_at > killed_at]
    assert len(after) > 20
    assert max(each.seconds for each in after) < 15  # waits in the dead one's accept queue
    assert len(gateways(pair)) == 2
