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
    clock: SteppedClock
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
    config = msgspec.structs.replace(QUICK, poll_timeout=0.2, poll_period=2.0, **settings)
    upstream = Upstream(parse_replica(f"http://127.0.0.1:{port}{options}"), config, clock)
    told = Told()
    watch = ReplicaWatch(upstream, told, api_key=api_key, clock=clock)
    try:
        yield Rig(watch, told, answers, clock, asked)
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


LLAMA = (
    b"# TYPE llamacpp:requests_processing gauge\n"
    b"llamacpp:requests_processing %d\nllamacpp:requests_deferred 2\nllamacpp:n_decode_total %d\n"
)


@async_test
async def test_requests_in_its_metrics_that_are_not_ours_are_others() -> None:
    async with watching() as rig:
        rig.answers["/metrics"] = (200, LLAMA % (5, 1))
        rig.told.ours = 3
        await rig.watch.look()
        assert rig.told.others == [4]
        rig.told.ours = 9  # more than its metrics show yet
        await rig.watch.look()
        assert rig.told.others == [4, 0]
        rig.told.ours = 3
        await rig.watch.look()
        rig.answers["/metrics"] = (500, b"")  # what is not known any more is none
        for _ in range(2):
            await rig.watch.look()
        assert rig.told.others == [4, 0, 4, 0]


@async_test
async def test_work_without_progress_is_a_hang_and_progress_the_end_of_it() -> None:
    async with watching(stuck_after=30.0) as rig:
        for progress, seconds, told in ((1, 20, 1), (2, 20, 1), (2, 20, 1), (2, 20, 2), (2, 1, 2)):
            rig.answers["/metrics"] = (200, LLAMA % (1, progress))
            await rig.watch.look()
            assert len(rig.told.log) == told
            rig.clock.advance(seconds)
        assert rig.told.log[1].startswith("lost hung: requests run there and nothing was computed")
        rig.answers["/metrics"] = (200, LLAMA % (1, 3))
        await rig.watch.look()
        assert rig.told.log[2] == "ready a,b"


@async_test
async def test_no_work_is_no_hang() -> None:
    async with watching(stuck_after=30.0) as rig:
        rig.answers["/metrics"] = (200, LLAMA % (0, 1))
        for _ in range(4):
            await rig.watch.look()
            rig.clock.advance(20)
        assert rig.told.log == ["ready a,b"]


@pytest.mark.parametrize("answer", [(501, b"off"), (200, b"x 1\n"), (500, b""), None])
@async_test
async def test_metrics_that_cannot_be_read_are_no_fault(answer: tuple[int, bytes] | None) -> None:
    async with watching() as rig:
        rig.answers["/metrics"] = answer
        for _ in range(4):
            await rig.watch.look()
        assert rig.told.log == ["ready a,b"]
        assert rig.told.others == []
        asked = [head.split()[1] for head in rig.asked].count("/metrics")
        assert asked == (1 if answer and answer[0] == 501 else 4)


@async_test
async def test_metrics_are_not_asked_for_where_they_are_switched_off() -> None:
    async with watching(metrics=False) as rig:
        await rig.watch.look()
        assert "/metrics" not in [head.split()[1] for head in rig.asked]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (b'{"data":[{"id":"c"}]}', "it serves c now, before a, b"),
        (b'{"data":[{"id":"a","root":"/other"}]}', "its a is another model: root /other"),
        (
            b'{"data":[{"id":"a","root":"/one","meta":{"n_params":8,"n_vocab":9}}]}',
            "its a is another model: n_params 8, before 7",
        ),
    ],
)
@async_test
async def test_another_model_behind_its_url_is_quarantined_until_the_old_one_is_back(
    now: bytes, words: str
) -> None:
    first = b'{"data":[{"id":"a","root":"/one","meta":{"n_params":7}},{"id":"b"}]}'
    async with watching() as rig:
        rig.answers["/v1/models"] = (200, first)
        await rig.watch.look()
        rig.answers["/v1/models"] = (200, now)
        await rig.watch.look()
        assert rig.told.log[1].startswith(f"lost quarantined: {words}")
        assert "foreign.follow_models" in rig.watch.reason
        assert rig.watch.standing.is_quarantined
        rig.answers["/v1/models"] = (200, first)
        await rig.watch.look()
        assert rig.told.log[2] == "ready a,b"
        assert not rig.watch.standing.is_quarantined


@async_test
async def test_a_replica_that_comes_back_with_another_model_is_not_taken_back() -> None:
    async with watching() as rig:
        await rig.watch.look()
        rig.watch.upstream.on_refused("cannot connect: Connection refused")
        rig.answers["/v1/models"] = (200, b'{"data":[{"id":"c"}]}')
        await rig.watch.look()
        assert len(rig.told.log) == 2
        assert rig.watch.reason.startswith("quarantined: it serves c now")


@async_test
async def test_adapters_come_and_go_and_limits_may_change() -> None:
    async with watching() as rig:
        await rig.watch.look()
        rig.answers["/v1/models"] = (200, b'{"data":[{"id":"a","max_model_len":9},{"id":"c"}]}')
        await rig.watch.look()
        assert rig.told.log == ["ready a,b", "ready a,c"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (",model=b", ["ready b"]),
        (",model=c", []),
        (",alias=x", []),
        (",model=a,alias=x", ["ready a"]),
    ],
)
@async_test
async def test_of_several_models_the_one_named_is_used(options: str, told: list[str]) -> None:
    async with watching(options=options) as rig:
        await rig.watch.look()
        assert rig.told.log == told
        if not told:
            assert "it serves a, b" in rig.watch.reason
