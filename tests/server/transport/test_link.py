"""A link and a listener over a real Unix socket, in one loop."""

from __future__ import annotations

import asyncio
import stat
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from headrace import messages
from headrace.clock import MonotonicClock
from headrace.core.scheduler.events import (
    Abort,
    KvChanged,
    KvSnapshot,
    Output,
    Reject,
    ReportLoad,
    SnapshotWanted,
    Submit,
)
from headrace.messages import Rejected, TokenFrame
from headrace.server.links import ReplicaDescription, ReplicaProcess
from headrace.server.transport.convert import welcome_message
from headrace.server.transport.frames import ConnectionLimits, FrameReader, pack
from headrace.server.transport.link import EngineLink
from headrace.server.transport.listener import EngineListener
from headrace.testing.async_test import async_test
from headrace.types import (
    FinishReason,
    ReplicaId,
    Request,
    RequestId,
    SamplingParams,
    TokenLogprobs,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from headrace.core.router.events import AttemptFailed
    from headrace.server.links import ReplicaLink
    from headrace.types import BlockKey

REPLICA = ReplicaId("r0")
LIMITS = ConnectionLimits(greeting_seconds=0.2, retry_min_seconds=0.005, retry_max_seconds=0.01)
DESCRIPTION = ReplicaDescription(
    replica=REPLICA,
    model_identity="m",
    vocab_size=100,
    max_model_len=1000,
    block_size=16,
    num_blocks=10,
    max_num_seqs=4,
    pid=1,
    epoch=9,
)
REPORT = ReportLoad(
    step=1,
    running=2,
    waiting=3,
    waiting_tokens=4,
    kv_blocks_total=10,
    kv_blocks_free=5,
    kv_blocks_cached=1,
    prompt_tokens_total=6,
    cached_tokens_total=7,
    output_tokens_total=8,
    discarded_tokens_total=9,
    preemptions_total=0,
    step_seconds_total=1.5,
)


def request(name: str, **fields: object) -> Request:
    return Request(**{"id": RequestId(name), "prompt": (1, 2, 3), "max_tokens": 5, **fields})


def token(name: str, value: int, *, cached: int = 0) -> Output:
    return Output(RequestId(name), (value,), None, cached)


class Events:
    """LinkEvents as a list; ``next`` waits for one."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()

    def replica_ready(self, link: ReplicaLink, description: ReplicaDescription) -> None:
        self.queue.put_nowait(("ready", description))

    def replica_lost(self, replica: ReplicaId, reason: str) -> None:
        self.queue.put_nowait(("lost", replica, reason))

    def outputs(self, replica: ReplicaId, outputs: Sequence[Output]) -> None:
        self.queue.put_nowait(("outputs", *outputs))

    def failed(self, failure: AttemptFailed) -> None:
        self.queue.put_nowait(
            ("failed", failure.request_id, failure.code, failure.retryable, failure.reason)
        )
        self.retry_after = failure.retry_after
        assert (failure.busy_for is not None) is (failure.code in ("overloaded", "not_ready"))

    def load(self, replica: ReplicaId, report: ReportLoad) -> None:
        self.queue.put_nowait(("load", report))

    def beat(self, replica: ReplicaId, process: ReplicaProcess) -> None:
        self.queue.put_nowait(("beat", process))

    def kv_changed(
        self,
        replica: ReplicaId,
        number: int,
        stored: tuple[BlockKey, ...],
        removed: tuple[BlockKey, ...],
        epoch: int = 0,
    ) -> None:
        assert epoch == DESCRIPTION.epoch
        self.queue.put_nowait(("changed", number, stored, removed))

    def kv_listed(
        self, replica: ReplicaId, number: int, keys: tuple[BlockKey, ...], epoch: int = 0
    ) -> None:
        assert epoch == DESCRIPTION.epoch
        self.queue.put_nowait(("listed", number, keys))

    async def next(self) -> tuple[object, ...]:
        return await asyncio.wait_for(self.queue.get(), 5)


class Engine:
    """What lies behind a listener in these tests: events in a queue."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Submit | Abort] = asyncio.Queue()
        self.wanted: asyncio.Queue[str] = asyncio.Queue()  # by whom the prefix cache is
        self.listener = EngineListener(
            description=DESCRIPTION,
            deliver=self.take,
            clock=MonotonicClock(),
            limits=LIMITS,
        )

    def take(self, event: Submit | Abort | SnapshotWanted) -> None:
        if isinstance(event, SnapshotWanted):
            self.wanted.put_nowait(event.to)
        else:
            self.queue.put_nowait(event)

    async def next_wanted(self) -> str:
        return await asyncio.wait_for(self.wanted.get(), 5)

    async def next(self) -> Submit | Abort:
        return await asyncio.wait_for(self.queue.get(), 5)


@asynccontextmanager
async def running_link(path: Path) -> AsyncIterator[tuple[EngineLink, Events]]:
    events = Events()
    link = EngineLink(
        replica=REPLICA,
        gateway="g0",
        path=path,
        events=events,
        clock=MonotonicClock(),
        limits=LIMITS,
    )
    task = asyncio.create_task(link.run())
    try:
        yield link, events
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[Engine, EngineLink, Events]]:
    engine = Engine()
    await engine.listener.start(path)
    async with running_link(path) as (link, events):
        assert await events.next() == ("ready", DESCRIPTION)
        yield engine, link, events
    engine.listener.close("test is over")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@async_test
async def test_a_request_arrives_and_its_tokens_come_back(path: Path):
    async with connected(path) as (engine, link, events):
        asked = request("a", sampling=SamplingParams(seed=2**64 - 1))
        link.submit(asked)
        assert await engine.next() == Submit(asked)
        finished = Output(RequestId("a"), (8,), FinishReason.STOP, 2)
        engine.listener.send_outputs([token("a", 7, cached=2)])
        engine.listener.send_outputs([finished])
        assert await events.next() == ("outputs", token("a", 7, cached=2))
        assert await events.next() == ("outputs", finished)
        assert engine.listener.num_requests == 0


@async_test
async def test_a_plain_token_after_a_cached_count_keeps_that_count(path: Path):
    async with connected(path) as (engine, link, events):
        link.submit(request("a"))
        await engine.next()
        for value in (1, 2, 3):
            engine.listener.send_outputs([token("a", value, cached=16)])
            assert await events.next() == ("outputs", token("a", value, cached=16))


@async_test
async def test_all_tokens_of_a_step_come_in_one_call(path: Path):
    async with connected(path) as (engine, link, events):
        names = [f"r{i}" for i in range(20)]
        for name in names:
            link.submit(request(name))
            await engine.next()
        rich = Output(
            RequestId("r3"), (9,), None, 0, (TokenLogprobs(9, -0.5, ((9, -0.5), (4, -1.5))),)
        )
        outputs = [rich if name == "r3" else token(name, i) for i, name in enumerate(names)]
        engine.listener.send_outputs(outputs)
        kind, *received = await events.next()
        assert kind == "outputs"
        assert sorted(received) == sorted(outputs)


@async_test
async def test_after_an_abort_nothing_more_comes_for_that_request(path: Path):
    async with connected(path) as (engine, link, events):
        for name in ("a", "b"):
            link.submit(request(name))
            await engine.next()
        engine.listener.send_outputs([token("a", 1), token("b", 1)])
        link.abort(RequestId("a"))
        link.abort(RequestId("a"))
        link.abort(RequestId("never submitted"))
        assert await engine.next() == Abort(RequestId("a"))
        assert await events.next() == ("outputs", token("b", 1))
        engine.listener.send_outputs([token("a", 2), token("b", 2)])
        assert await events.next() == ("outputs", token("b", 2))


@async_test
async def test_refusals_and_load_reports_are_handed_on(path: Path):
    async with connected(path) as (engine, link, events):
        link.submit(request("a"))
        await engine.next()
        engine.listener.send_rejection(
            Reject(RequestId("a"), "context_length_exceeded", "too long")
        )
        engine.listener.gateways.send_load(REPORT)
        expected = ("failed", "a", "context_length_exceeded", False, "too long")
        assert await events.next() == expected
        assert await events.next() == ("load", REPORT)


@async_test
async def test_a_gateway_that_comes_later_gets_the_last_load_report(path: Path):
    async with connected(path) as (engine, _, _):
        engine.listener.gateways.send_load(REPORT)
        async with running_link(path) as (_, later):
            assert await later.next() == ("ready", DESCRIPTION)
            assert await later.next() == ("load", REPORT)


@async_test
async def test_a_request_out_of_range_costs_itself_only(path: Path):
    async with connected(path) as (engine, link, events):
        link.submit(request("a", sampling=SamplingParams(top_p=float("nan"))))
        link.submit(request("b", min_tokens=9))
        link.submit(request("c"))
        assert (await events.next())[:4] == ("failed", "a", "invalid_request", False)
        assert (await events.next())[:4] == ("failed", "b", "invalid_request", False)
        assert await engine.next() == Submit(request("c"))


@async_test
async def test_a_gateway_that_goes_away_has_its_requests_aborted(path: Path):
    engine = Engine()
    await engine.listener.start(path)
    async with running_link(path) as (link, events):
        await events.next()
        link.submit(request("a"))
        link.submit(request("b"))
        await engine.next()
        await engine.next()
    aborted = [await engine.next(), await engine.next()]
    assert aborted == [Abort(RequestId("a")), Abort(RequestId("b"))]
    assert engine.listener.num_requests == 0
    engine.listener.close("test is over")


@async_test
async def test_a_link_comes_back_when_the_engine_does(path: Path):
    async with running_link(path) as (link, events):
        for _ in range(3):
            engine = Engine()
            await engine.listener.start(path)
            assert await events.next() == ("ready", DESCRIPTION)
            link.submit(request("a"))
            await engine.next()
            engine.listener.close("dies")
            assert (await events.next())[:2] == ("lost", REPLICA)


@async_test
async def test_a_request_for_a_replica_that_is_gone_comes_back_as_lost(path: Path):
    async with running_link(path) as (link, events):
        link.submit(request("a"))
        assert events.queue.empty()  # never from within submit
        assert (await events.next())[:4] == ("failed", "a", "worker_lost", True)


@async_test
async def test_a_draining_engine_refuses_and_ends_when_its_last_request_does(path: Path):
    async with connected(path) as (engine, link, events):
        link.submit(request("a"))
        await engine.next()
        draining = asyncio.create_task(engine.listener.drain())
        link.submit(request("b"))
        await asyncio.sleep(0)
        assert (await events.next())[:4] == ("failed", "b", "not_ready", True)
        assert not draining.done()
        engine.listener.send_outputs([Output(RequestId("a"), (), FinishReason.LENGTH, 0)])
        await asyncio.wait_for(draining, 5)


BEAT = ReplicaProcess(step_seconds=0.5, resident_bytes=1 << 20, open_fds=9, cpu_seconds=1.5)


async def know_the_cache(engine: Engine, events: Events) -> None:
    """Play the core: answer the wish of a new gateway."""
    engine.listener.gateways.send_content(KvSnapshot(await engine.next_wanted(), 4, (1, 2**64 - 1)))
    assert await events.next() == ("listed", 4, (1, 2**64 - 1))


@async_test
async def test_a_new_gateway_gets_the_prefix_cache_unasked_and_then_its_changes(path: Path):
    async with connected(path) as (engine, _, events):
        engine.listener.gateways.send_change(KvChanged(4, (1,), ()))  # is in what it will get
        await know_the_cache(engine, events)
        engine.listener.gateways.send_change(KvChanged(5, (7, 8), (1,)))
        assert await events.next() == ("changed", 5, (7, 8), (1,))


@async_test
async def test_content_goes_to_who_asked_and_is_asked_for_once(path: Path):
    async with connected(path) as (engine, link, events):
        await know_the_cache(engine, events)
        async with running_link(path) as (_, others):
            assert await others.next() == ("ready", DESCRIPTION)
            await know_the_cache(engine, others)
            link.want_snapshot()
            link.want_snapshot()
            name = await engine.next_wanted()
            engine.listener.gateways.send_content(KvSnapshot("nobody", 5, ()))
            engine.listener.gateways.send_content(KvSnapshot(name, 5, (3,)))
            engine.listener.gateways.send_beat(BEAT)
            assert await events.next() == ("listed", 5, (3,))
            beat = replace(BEAT, kv_changes=0)
            assert await events.next() == ("beat", beat)
            assert await others.next() == ("beat", beat)
            assert engine.wanted.empty()


@async_test
async def test_a_slow_reader_misses_changes_but_no_tokens_and_is_made_good(path: Path):
    engine = Engine()
    await engine.listener.start(path)
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 12)
    writer.write(pack(messages.encode(messages.Hello("slow"))))
    gateways = engine.listener.gateways
    gateways.send_content(KvSnapshot(await engine.next_wanted(), 0, ()))
    (session,) = gateways
    number = 0
    while not session.connection.is_congested:  # nobody reads
        number += 1
        gateways.send_change(KvChanged(number, tuple(range(1000)), ()))
    gateways.send_change(KvChanged(number + 1, (1,), ()))
    gateways.send_change(KvChanged(number + 2, (2,), ()))
    gateways.send_beat(BEAT)
    assert engine.wanted.empty()  # not while it reads nothing
    frames = FrameReader(max_frame_bytes=1 << 20)
    told: list[object] = []
    while not told or not isinstance(told[-1], messages.Beat):
        told += map(messages.decode_to_gateway, frames.feed(await reader.read(1 << 16)))
    changes = [each.number for each in told if isinstance(each, messages.KvChange)]
    assert changes == list(range(1, number + 1))
    assert told[-1].kv_changes == number + 2, "the reader would not notice what it missed"
    gateways.send_beat(BEAT)
    assert await engine.next_wanted() == session.name
    writer.close()
    engine.listener.close("test is over")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@async_test
async def test_the_socket_is_for_this_user_only(path: Path):
    async with connected(path):
        assert mode(path) == 0o600


async def talk(path: Path, payloads: bytes) -> bytes:
    """Send bytes to a listener; return all that it answers until it hangs up."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(payloads)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


@async_test
async def test_a_peer_that_does_not_say_hello_is_cut_off(path: Path):
    async with connected(path) as (engine, link, events):
        assert await talk(path, b"") == b""
        assert await talk(path, pack(messages.encode(messages.AbortRequest(1)))) == b""
        hello = pack(messages.encode(messages.Hello("x")))
        await talk(path, hello + hello)  # ends
        assert await talk(path, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == b""
        link.submit(request("a"))  # the gateway that behaves is unharmed
        assert await engine.next() == Submit(request("a"))
        assert events.queue.empty()


class Impostor:
    """A server that answers a Hello with frames of the test's choice."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = deque(replies)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = FrameReader(max_frame_bytes=4096)
        while not list(frames.feed(await reader.read(4096))):
            pass
        writer.write(self.replies.popleft() if self.replies else b"")
        await reader.read()
        writer.close()


@pytest.mark.parametrize(
    "message",
    [
        TokenFrame([0], [1], []),  # a stream that was never opened
        TokenFrame([], [1], []),  # columns of different length
        Rejected(5, "x", "y"),
        welcome_message(DESCRIPTION),  # a second one
    ],
)
@async_test
async def test_an_engine_that_breaks_the_protocol_is_left_and_tried_again(
    path: Path, message: object
):
    welcome = pack(messages.encode(welcome_message(DESCRIPTION)))
    impostor = Impostor(welcome + pack(messages.encode(message)), welcome)
    server = await asyncio.start_unix_server(impostor.serve, path)
    async with running_link(path) as (_, events):
        assert await events.next() == ("ready", DESCRIPTION)
        kind, _, reason = await events.next()
        assert kind == "lost"
        assert "protocol error" in str(reason)
        assert await events.next() == ("ready", DESCRIPTION)
    server.close()


@async_test
async def test_an_engine_that_never_welcomes_is_tried_again(path: Path):
    impostor = Impostor(b"", pack(messages.encode(welcome_message(DESCRIPTION))))
    server = await asyncio.start_unix_server(impostor.serve, path)
    async with running_link(path) as (_, events):
        assert await events.next() == ("ready", DESCRIPTION)
    server.close()


@async_test
async def test_an_engine_that_is_full_is_left_for_another(path: Path):
    async with connected(path) as (engine, link, events):
        link.submit(request("a"))
        await engine.next()
        engine.listener.send_rejection(
            Reject(RequestId("a"), "overloaded", "4096 requests are waiting")
        )
        assert (await events.next())[:4] == ("failed", "a", "overloaded", True)


@async_test
async def test_a_refused_target_is_handed_on_with_when_it_could_be_kept(path: Path):
    async with connected(path) as (engine, link, events):
        link.submit(request("a"))
        await engine.next()
        reject = Reject(RequestId("a"), "deadline_infeasible", "3.2 s", retry_after=2.5)
        engine.listener.send_rejection(reject)
        assert await events.next() == ("failed", "a", "deadline_infeasible", True, "3.2 s")
        assert events.retry_after == 2.5
