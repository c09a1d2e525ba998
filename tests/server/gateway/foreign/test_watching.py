"""What a look at a replica finds, and what is made of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest
from foreign_serving import QUICK, SteppedClock

from headrace.server.gateway.foreign.address import parse_replica
from headrace.server.gateway.foreign.health import ReplicaWatch
from headrace.server.gateway.foreign.upstream import Upstream
from headrace.testing.async_test import async_test

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from headrace.server.gateway.foreign.cards import ModelCard

GOOD = b'{"object":"list","data":[{"id":"a","max_model_len":5},{"id":"b"}]}'


@dataclass
class Told:
    """Implements Pools: keeps what it is told."""

    log: list[str] = field(default_factory=list)
    ours: int = 0
    others: list[int] = field(default_factory=list)

    def ready(self, upstream: Upstream, cards: Mapping[str, ModelCard]) -> None:
        self.log.append("ready " + ",".join(cards))

    def lost(self, upstream: Upstream, reason: str) -> None:
        self.log.append(f"lost {reason}")

    def requests_at(self, upstream: Upstream) -> int:
        return self.ours

    def loaded(self, upstream: Upstream, num_others: int) -> None:
        self.others.append(num_others)


@dataclass
class Rig:
    """A watch, and a server that answers as the test says; None: it is silent."""

    watch: ReplicaWatch
    told: Told
    answers: dict[str, tuple[int, bytes] | None]
    asked: list[str] = field(default_factory=list)


@asynccontextmanager
async def watching(api_key: str = "", options: str = "", **settings: object) -> AsyncIterator[Rig]:
    answers: dict[str, tuple[int, bytes] | None] = {
        "/health": (404, b"{}"),
        "/v1/models": (200, GOOD),
        "/metrics": (404, b""),
    }
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode():
            asked.append(head)
            answer = answers[head.split()[1]]
            if answer is not None:
                status, body = answer
                writer.write(
                    b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)
                )

    async def serve_quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve_quietly, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clock = SteppedClock()
    config = msgspec.structs.replace(QUICK, poll_timeout=0.05, poll_period=2.0, **settings)
    upstream = Upstream(parse_replica(f"http://127.0.0.1:{port}{options}"), config, clock)
    told = Told()
    watch = ReplicaWatch(upstream, told, api_key=api_key, clock=clock)
    try:
        yield Rig(watch, told, answers, asked)
    finally:
        upstream.close()
        server.close()
        await asyncio.sleep(0)


@async_test
async def test_models_are_told_once_while_they_stay_the_same() -> None:
    async with watching(api_key="k") as rig:
        for _ in range(3):
            await rig.watch.look()
        assert rig.told.log == ["ready a,b"]
        assert rig.watch.reason == ""
        assert [head.split()[1] for head in rig.asked].count("/health") == 1  # there is none
        assert all("authorization: Bearer k" in head for head in rig.asked)


@async_test
async def test_other_models_are_told_anew_where_they_may_change() -> None:
    async with watching(follow_models=True) as rig:
        await rig.watch.look()
        rig.answers["/v1/models"] = (200, b'{"data":[{"id":"c"}]}')
        await rig.watch.look()
        assert rig.told.log == ["ready a,b", "ready c"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, b""), "status 500"),
        ((401, b""), "status 401"),
        ((200, b"<html>"), "not a list of models"),
        ((200, b'{"data":[{"name":"a"}]}'), "not a list of models"),
        ((200, b"[" * 50_000), "not a list of models"),
        ((200, b'{"data":[]}'), "names no model"),
        ((200, b" " * 5_000_000), "bytes"),
        (None, "does not answer within"),
    ],
)
@async_test
async def test_a_wrong_answer_counts_only_when_it_is_given_three_times(
    answer: tuple[int, bytes] | None, words: str
) -> None:
    async with watching() as rig:
        await rig.watch.look()
        rig.answers["/v1/models"] = answer
        for _ in range(2):
            await rig.watch.look()
        assert rig.told.log == ["ready a,b"]
        await rig.watch.look()
        assert len(rig.told.log) == 2
        assert rig.told.log[1].startswith("lost ")
        assert words in rig.watch.reason
        rig.answers["/v1/models"] = (200, GOOD)
        await rig.watch.look()
        assert rig.told.log[2] == "ready a,b"


@async_test
async def test_silence_does_not_count_while_its_streams_bring_something() -> None:
    async with watching() as rig:
        await rig.watch.look()
        rig.answers["/v1/models"] = None
        for _ in range(6):
            looking = asyncio.create_task(rig.watch.look())
            await asyncio.sleep(0)
            rig.watch.upstream.last_heard = rig.watch.upstream.clock.now()  # a stream's bytes
            await looking
        assert rig.told.log == ["ready a,b"]


@async_test
async def test_a_refused_connection_counts_at_once_and_once() -> None:
    async with watching() as rig:
        await rig.watch.look()
        rig.watch.upstream.on_refused("cannot connect: Connection refused")
        rig.watch.upstream.on_refused("cannot connect: Connection refused")
        assert rig.told.log == ["ready a,b", "lost cannot connect: Connection refused"]
        await rig.watch.look()
        assert rig.told.log[2] == "ready a,b"
