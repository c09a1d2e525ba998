"""The controller's end of the control connection, against a gateway that a test plays."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from headrace.errors import NotReady, Overloaded
from headrace.messages import (
    Answer,
    Ask,
    AskAll,
    Emptied,
    Farewell,
    Hello,
    Member,
    Members,
    PoolReport,
    decode_from_controller,
)
from headrace.server import control_link
from headrace.server.control_link import ControlLink
from headrace.server.gateway.http.messages import Response
from headrace.server.transport.frames import ConnectionLimits, FrameConnection
from headrace.testing.async_test import async_test

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from msgspec import Struct

TABLE = Members((Member(replica="r0", address="/r0"),))
REPORT = PoolReport(gateway="g0", waiting=1, waiting_tokens=2, predicted_ttft=0.5, replicas=())


class Gateway:
    """Listens, keeps what came, and answers what a test tells it to."""

    def __init__(self) -> None:
        self.received_messages: asyncio.Queue[Members | Ask | Answer] = asyncio.Queue()
        self.connection: FrameConnection | None = None

    def opened(self, connection: FrameConnection) -> None:
        self.connection = connection

    def received(self, connection: FrameConnection, payload: bytes) -> None:
        self.received_messages.put_nowait(decode_from_controller(payload))

    def closed(self, connection: FrameConnection, reason: str) -> None:
        self.connection = None

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            lambda: FrameConnection(self, ConnectionLimits()), str(path)
        )
        try:
            yield
        finally:
            server.close()
            if self.connection is not None:
                self.connection.abort("the gateway dies")

    async def next(self) -> Members | Ask | Answer:
        return await self.received_messages.get()

    def send(self, message: Struct) -> None:
        assert self.connection is not None
        self.connection.send(message)


class Heard:
    """ControlEvents and a Collector that remember."""

    def __init__(self) -> None:
        self.all: asyncio.Queue[PoolReport | Emptied] = asyncio.Queue()
        self.told: list[str] = []

    def gateway_joined(self, name: str) -> None:
        self.told.append(f"joined {name}")

    def gateway_left(self, name: str) -> None:
        self.told.append(f"left {name}")

    async def answer(self, path: str) -> Response:
        return Response(200, b"all of " + path.encode(), b"text/plain")

    def hello(self, name: str, life: str) -> None:
        self.told.append(f"{name} is {life}")

    def farewell(self, name: str, figures: str) -> None:
        self.told.append(f"{name} counted {figures}")

    def lost(self, name: str) -> None:
        self.told.append(f"lost {name}")

    def gone(self, name: str) -> None:
        raise AssertionError(name)

    def gateway_load(self, report: PoolReport) -> None:
        self.all.put_nowait(report)

    def gateway_emptied(self, emptied: Emptied) -> None:
        self.all.put_nowait(emptied)


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[tuple[ControlLink, Heard]]:
    link, heard = ControlLink(path, ConnectionLimits(stall_seconds=0.2)), Heard()
    link.bind(heard, heard)
    task = asyncio.create_task(link.run())
    try:
        yield link, heard
    finally:
        task.cancel()
        await asyncio.wait([task])


@async_test
async def test_each_new_connection_gets_the_whole_table(tmp_path: Path):
    path = tmp_path / "g0.control"
    async with running(path) as (link, _):
        link.send_members(TABLE)
        for number in (1, 2):
            gateway = Gateway()
            async with gateway.listening(path):
                assert await gateway.next() == TABLE
                assert link.num_connections == number
                changed = Members((*TABLE.members, Member(replica="r1", address="/r1")))
                link.send_members(changed)
                assert await gateway.next() == changed
                link.send_members(TABLE)


@async_test
async def test_reports_are_handed_on(tmp_path: Path):
    gateway = Gateway()
    async with gateway.listening(tmp_path / "s"), running(tmp_path / "s") as (link, heard):
        link.send_members(TABLE)
        await gateway.next()
        gateway.send(REPORT)
        gateway.send(Emptied("g0", "r1"))
        assert await heard.all.get() == REPORT
        assert await heard.all.get() == Emptied("g0", "r1")


@async_test
async def test_answers_find_their_questions_in_any_order(tmp_path: Path):
    gateway = Gateway()
    async with gateway.listening(tmp_path / "s"), running(tmp_path / "s") as (link, _):
        link.send_members(TABLE)
        await gateway.next()
        asking = [asyncio.create_task(link.ask(path)) for path in ("/a", "/b")]
        asks = [await gateway.next() for _ in asking]
        for ask in reversed(asks):
            assert isinstance(ask, Ask)
            gateway.send(Answer(ask.number, 200, "text/plain", ask.path.encode()))
        assert [(await each).body for each in asking] == [b"/a", b"/b"]
        gateway.send(Answer(999, 200, "text/plain", b"nobody asked"))


@async_test
async def test_without_a_gateway_there_is_no_answer(tmp_path: Path):
    async with running(tmp_path / "s") as (link, _):
        with pytest.raises(NotReady, match="not connected"):
            await link.ask("/state")


@async_test
async def test_a_gateway_that_dies_or_is_silent_leaves_no_question_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gateway = Gateway()
    async with running(tmp_path / "s") as (link, _):
        link.send_members(TABLE)
        async with gateway.listening(tmp_path / "s"):
            await gateway.next()
            asking = asyncio.create_task(link.ask("/a"))
            await gateway.next()
        with pytest.raises(NotReady, match="went away"):
            await asking
        monkeypatch.setattr(control_link, "ANSWER_SECONDS", 0.05)
        async with gateway.listening(tmp_path / "s"):
            await gateway.next()
            with pytest.raises(NotReady, match="did not answer within"):
                await link.ask("/b")


@async_test
async def test_questions_are_bounded(tmp_path: Path):
    gateway = Gateway()
    async with gateway.listening(tmp_path / "s"), running(tmp_path / "s") as (link, _):
        link.send_members(TABLE)
        await gateway.next()
        asking = [asyncio.create_task(link.ask("/a")) for _ in range(control_link.MAX_QUESTIONS)]
        for _ in asking:
            await gateway.next()
        with pytest.raises(Overloaded):
            await link.ask("/one-more")
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)


@async_test
async def test_a_gateway_that_breaks_the_protocol_is_left_and_tried_again(tmp_path: Path):
    gateway = Gateway()
    async with gateway.listening(tmp_path / "s"), running(tmp_path / "s") as (link, _):
        link.send_members(TABLE)
        await gateway.next()
        assert gateway.connection is not None
        gateway.connection.send(TABLE)  # not for a controller
        assert await gateway.next() == TABLE  # the second connection's
        assert link.num_connections == 2


@async_test
async def test_a_gateway_comes_asks_for_all_says_farewell_and_goes(tmp_path: Path):
    gateway = Gateway()
    async with running(tmp_path / "s") as (link, heard):
        link.send_members(TABLE)
        async with gateway.listening(tmp_path / "s"):
            await gateway.next()
            assert link.is_connected
            gateway.send(Hello("g0.1a"))
            gateway.send(AskAll(7, "/metrics"))
            assert await gateway.next() == Answer(7, 200, "text/plain", b"all of /metrics")
            gateway.send(Farewell(b"x 1"))
            gateway.send(REPORT)
            await heard.all.get()
        while link.is_connected:  # noqa: ASYNC110 (a few turns of the loop)
            await asyncio.sleep(0)
    assert heard.told == ["joined g0", "g0 is g0.1a", "g0 counted x 1", "lost g0", "left g0"]
