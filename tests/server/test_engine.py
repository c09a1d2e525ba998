"""An engine in this process, a gateway's link on its real socket, a simulated executor."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from headrace.clock import MonotonicClock
from headrace.core.kvcache.chain import chain_root, prompt_chain
from headrace.core.scheduler.scheduler import Scheduler
from headrace.errors import ConfigError, ExecutorFault, InvariantBroken, ModelTooLarge
from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SLOT_BYTES, SimulatedExecutor
from headrace.monitoring.step_journal import SubmitEntry
from headrace.monitoring.step_replay import lines_of, read_journal, replay
from headrace.server.engine import serve_engine
from headrace.server.executor_thread import PacedExecutor
from headrace.server.settings import EngineProcess, EngineSettings, LogConfig, ModelFile
from headrace.server.transport.frames import ConnectionLimits
from headrace.server.transport.link import EngineLink
from headrace.testing.async_test import async_test
from headrace.testing.replays import replayed
from headrace.types import FinishReason, KvSource, ReplicaId, Request, RequestId, block_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from headrace.core.router.events import AttemptFailed
    from headrace.core.scheduler.plan import StepPlan, StepResult
    from headrace.executor.base import Executor
    from headrace.server.child import Ready
    from headrace.server.links import ReplicaDescription, ReplicaLink, ReplicaProcess
    from headrace.types import BlockKey, EngineTiming, Output, ReportLoad, TokenId

SPEC = ExecutorSpec(
    model_identity="simulated/test",
    vocab_size=1000,
    max_model_len=256,
    block_size=16,
    num_blocks=64,
    block_bytes=0,
)


class Client:
    """LinkEvents that gather the tokens of each request."""

    num_blocks = SPEC.num_blocks

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.lost = asyncio.Event()
        self.tokens: dict[str, list[TokenId]] = {}
        self.timings: dict[str, list[EngineTiming | None]] = {}
        self.ends: dict[str, asyncio.Future[Output]] = {}
        self.refusals: dict[str, str] = {}
        self.reports: asyncio.Queue[ReportLoad] = asyncio.Queue()
        self.beats: asyncio.Queue[ReplicaProcess] = asyncio.Queue()
        self.kv_number = -1
        self.keys: set[BlockKey] = set()

    def replica_ready(self, link: ReplicaLink, description: ReplicaDescription) -> None:
        assert description.num_blocks == self.num_blocks
        assert description.max_num_batched_tokens in (64, 512)
        self.ready.set()

    def replica_lost(self, replica: ReplicaId, reason: str) -> None:
        self.lost.set()

    def outputs(self, replica: ReplicaId, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self.tokens.setdefault(output.request_id, []).extend(output.tokens)
            self.timings.setdefault(output.request_id, []).append(output.timing)
            if output.finish is not None:
                self.end(output.request_id).set_result(output)

    def failed(self, failure: AttemptFailed) -> None:
        self.refusals[failure.request_id] = failure.code
        self.end(failure.request_id).cancel()

    def beat(self, replica: ReplicaId, process: ReplicaProcess) -> None:
        self.beats.put_nowait(process)

    def kv_changed(
        self,
        replica: ReplicaId,
        number: int,
        stored: tuple[BlockKey, ...],
        removed: tuple[BlockKey, ...],
        epoch: int = 0,
    ) -> None:
        assert number == self.kv_number + 1
        self.kv_number = number
        self.keys = (self.keys | set(stored)) - set(removed)

    def kv_listed(
        self, replica: ReplicaId, number: int, keys: tuple[BlockKey, ...], epoch: int = 0
    ) -> None:
        self.kv_number, self.keys = number, set(keys)

    def load(self, replica: ReplicaId, report: ReportLoad) -> None:
        self.reports.put_nowait(report)

    def end(self, name: str) -> asyncio.Future[Output]:
        return self.ends.setdefault(name, asyncio.get_running_loop().create_future())

    async def step_of(self, seconds: float) -> ReplicaProcess:
        """Wait for a beat during a step that has taken so long."""
        while (process := await self.beats.get()).step_seconds < seconds:
            pass
        return process

    async def idle_report(self) -> ReportLoad:
        while True:
            report = await self.reports.get()
            if not report.running and not report.waiting:
                return report


def process(path: Path, **settings: object) -> EngineProcess:
    return EngineProcess(
        replica="r0",
        socket=str(path),
        cache_dir="",
        model=ModelFile(path="", name="test", simulated=True),
        engine=EngineSettings(report_seconds=0.01, **settings),
        transport=ConnectionLimits(beat_seconds=0.01),
        log=LogConfig(),
        drain_seconds=5,
    )


class Running:
    """An engine that runs in this loop, and a client of it."""

    def __init__(self, link: EngineLink, client: Client, task: asyncio.Task[int]) -> None:
        self.link = link
        self.client = client
        self.task = task
        self.stop = asyncio.Event()

    async def generate(self, name: str, prompt: Sequence[int], max_tokens: int) -> Output:
        self.link.submit(Request(id=RequestId(name), prompt=tuple(prompt), max_tokens=max_tokens))
        return await self.client.end(name)


@asynccontextmanager
async def engine(
    path: Path, build: Callable[[], Executor] = lambda: SimulatedExecutor(SPEC), **settings: object
) -> AsyncIterator[Running]:
    client, stop = Client(), asyncio.Event()
    reports: list[Ready] = []
    task = asyncio.create_task(
        serve_engine(
            process(path, **settings),
            build=build,
            clock=MonotonicClock(),
            report=reports.append,
            stop=stop,
        )
    )
    link = EngineLink(
        replica=ReplicaId("r0"),
        gateway="g0",
        path=path,
        events=client,
        clock=MonotonicClock(),
        limits=ConnectionLimits(retry_max_seconds=0.02),
    )
    linking = asyncio.create_task(link.run())
    try:
        await client.ready.wait()
        running = Running(link, client, task)
        running.stop = stop
        yield running
    finally:
        stop.set()
        linking.cancel()
        await asyncio.wait([task, linking])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r0.sock"


@async_test
async def test_tokens_come_back_and_all_blocks_are_free_at_the_end(path: Path):
    async with engine(path) as running:
        ends = await asyncio.gather(
            *(running.generate(f"r{i}", range(1, 20 + i), 10) for i in range(20))
        )
        assert {end.finish for end in ends} == {FinishReason.LENGTH}
        assert {len(tokens) for tokens in running.client.tokens.values()} == {10}
        report = await running.client.idle_report()
        assert report.kv_blocks_free == report.kv_blocks_total == SPEC.num_blocks
        assert report.output_tokens_total == 200


@async_test
async def test_the_first_token_tells_how_it_came_about(path: Path):
    async with engine(path, max_num_batched_tokens=64) as running:
        await running.generate("a", range(150), 3)
        first, *later = running.client.timings["a"]
        assert first is not None
        assert (first.chunks, first.preemptions) == (3, 0)
        assert first.waited >= 0
        assert first.prefill > 0
        assert later == [None, None]


@async_test
async def test_what_the_prefix_cache_holds_is_told(path: Path):
    async with engine(path) as running:
        prompt = tuple(range(40))
        await running.generate("a", prompt, 2)
        await running.client.idle_report()
        root = chain_root(salt=b"", model_identity=SPEC.model_identity, block_size=SPEC.block_size)
        chain = prompt_chain(root, prompt, SPEC.block_size)
        assert running.client.keys == {block_key(digest) for digest in chain}
        running.client.keys = set()
        running.link.want_snapshot()
        await running.generate("b", prompt, 2)
        assert running.client.keys == {block_key(digest) for digest in chain}


@async_test
async def test_the_heart_beats_while_a_step_takes_long_and_while_it_drains(path: Path):
    release = threading.Event()
    slow = PacedExecutor(SimulatedExecutor(SPEC), speed=1, wait=lambda _: release.wait(10))
    async with engine(path, lambda: slow) as running:
        going_on = asyncio.create_task(running.generate("a", range(5), 2))
        longest = await running.client.step_of(0.05)
        assert longest.resident_bytes > 1 << 20
        assert longest.open_fds > 3
        assert longest.cpu_seconds > 0
        running.stop.set()
        await running.client.step_of(longest.step_seconds + 0.05)
        release.set()
        assert (await going_on).finish is FinishReason.LENGTH


@async_test
async def test_the_same_request_gives_the_same_tokens_alone_and_in_company(path: Path):
    async with engine(path) as running:
        await running.generate("alone", range(5), 30)
        await asyncio.gather(
            running.generate("with others", range(5), 30),
            *(running.generate(f"other{i}", range(i, 60), 30) for i in range(8)),
        )
        assert running.client.tokens["alone"] == running.client.tokens["with others"]


@async_test
async def test_a_prompt_that_is_too_long_is_refused(path: Path):
    async with engine(path) as running:
        with pytest.raises(asyncio.CancelledError):
            await running.generate("long", range(300), 10)
        assert running.client.refusals == {"long": "context_length_exceeded"}


@async_test
async def test_stopping_lets_running_requests_finish_and_refuses_new_ones(path: Path):
    async with engine(path) as running:
        going_on = asyncio.create_task(running.generate("a", range(5), 200))
        await running.client.reports.get()  # it runs
        running.stop.set()
        assert (await going_on).finish is FinishReason.LENGTH
        assert await running.task == 0
        await running.client.lost.wait()


class Broken(SimulatedExecutor):
    """Every step fails."""

    def execute(self, plan: StepPlan) -> StepResult:
        raise ExecutorFault("the device is gone")


@async_test
async def test_a_failed_step_fails_its_requests_and_many_in_a_row_end_the_engine(path: Path):
    # Two steps of each request fail: the second was planned before the first was known.
    async with engine(path, lambda: Broken(SPEC), max_faults=4, steps_in_flight=2) as running:
        for name in ("a", "b"):
            end = await running.generate(name, range(5), 10)
            assert (end.finish, end.reason) == (FinishReason.ERROR, "the device is gone")
        assert await running.task == 1


@pytest.mark.interpreted
@async_test
async def test_a_core_that_dies_ends_the_engine_with_an_error_and_leaves_what_replays_its_death(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    # vllm-project/vllm#48966: the death of the core ended with exit code 0, and no restart policy
    # saw it; #7633: health said OK after it; #54229 asks for a snapshot of such incidents
    def schedule(self: Scheduler) -> None:
        raise InvariantBroken("damaged")

    async with engine(path) as running:
        await running.generate("a", range(20), 5)
        with monkeypatch.context() as damage:
            damage.setattr(Scheduler, "schedule", schedule)
            running.link.submit(Request(id=RequestId("b"), prompt=(1, 2), max_tokens=5))
            await running.client.lost.wait()
        assert await running.task == 1
    (file,) = (path.parent / "incidents").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    dump = read_journal(file.read_bytes())
    assert dump.reason == "the engine core died: damaged"
    _, lines = lines_of(dump.segments[0])
    assert isinstance(lines[-1], SubmitEntry)
    assert lines[-1].request.id.startswith("b")
    monkeypatch.setattr(Scheduler, "schedule", schedule)
    assert "InvariantBroken('damaged')" in replay(dump.segments[0]).reason
    monkeypatch.undo()
    assert "then []" in replay(dump.segments[0]).parted  # undamaged, it plans a step


@async_test
async def test_an_engine_writes_its_journal_when_it_is_asked_to(path: Path):
    async with engine(path) as running:
        await running.generate("a", range(20), 5)
        os.kill(os.getpid(), signal.SIGUSR1)
        await running.generate("b", range(20), 5)
    (file,) = (path.parent / "incidents").iterdir()
    (segment,) = read_journal(file.read_bytes()).segments
    found = replayed(segment)
    assert (found.parted, found.reason) == ("", "")
    assert found.num_steps >= 5


@async_test
async def test_without_a_journal_nothing_is_written(path: Path):
    async with engine(path, journal_bytes=0) as running:
        os.kill(os.getpid(), signal.SIGUSR1)
        await running.generate("a", range(20), 5)
    assert not (path.parent / "incidents").exists()


@async_test
async def test_a_step_that_hangs_ends_the_engine(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("headrace.server.engine.WATCH_SECONDS", 0.01)
    release = threading.Event()
    hanging = PacedExecutor(SimulatedExecutor(SPEC), speed=1, wait=lambda _: release.wait(10))
    async with engine(path, lambda: hanging, step_seconds=0.05) as running:
        running.link.submit(Request(id=RequestId("a"), prompt=(1,), max_tokens=5))
        await running.client.lost.wait()
        release.set()
        assert await running.task == 1


@async_test
async def test_an_executor_that_cannot_be_built_ends_the_start_with_its_error(path: Path):
    def build() -> Executor:  # before anything listens
        raise ModelTooLarge("needs 9 GB")

    with pytest.raises(ModelTooLarge):
        await serve_engine(
            process(path),
            build=build,
            clock=MonotonicClock(),
            report=lambda _: None,
            stop=asyncio.Event(),
        )


@async_test
async def test_settings_that_contradict_each_other_are_told_before_anything_is_loaded(path: Path):
    def build() -> Executor:
        raise AssertionError("loaded")

    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        await serve_engine(
            process(path, max_num_seqs=64, max_num_batched_tokens=32),
            build=build,
            clock=MonotonicClock(),
            report=lambda _: None,
            stop=asyncio.Event(),
        )


@async_test
async def test_an_engine_that_is_told_to_end_while_it_loads_does(path: Path):
    release, loading, stop = threading.Event(), threading.Event(), asyncio.Event()

    def build() -> Executor:
        loading.set()
        release.wait(10)
        return SimulatedExecutor(SPEC)

    reports: list[Ready] = []
    task = asyncio.create_task(
        serve_engine(
            process(path),
            build=build,
            clock=MonotonicClock(),
            report=reports.append,
            stop=stop,
        )
    )
    await asyncio.to_thread(loading.wait)
    stop.set()
    await asyncio.sleep(0)
    release.set()
    assert await task == 0
    assert reports == []


TIERED = ExecutorSpec(
    model_identity="simulated/tiered",
    vocab_size=1000,
    max_model_len=256,
    block_size=16,
    num_blocks=20,
    block_bytes=16 * SLOT_BYTES,
)


def checked() -> Executor:
    """An executor that fails a step whose context is not exactly its own prefix."""
    return SimulatedExecutor(TIERED, check_kv=True)


async def texts_of(running: Running, *names: int) -> dict[str, list[TokenId]]:
    """Ask for prompts that do not fit beside each other; return the text of each."""
    for name in names:
        end = await running.generate(f"{name}", range(name, name + 200), 5)
        assert end.finish is FinishReason.LENGTH
    return {name: list(tokens) for name, tokens in running.client.tokens.items()}


@async_test
async def test_blocks_outlive_the_engine_on_disk_and_texts_are_the_same(path: Path):
    client_blocks, Client.num_blocks = Client.num_blocks, TIERED.num_blocks
    directory = str(path.parent / "kv")
    try:
        async with engine(path, checked) as running:
            expected = await texts_of(running, 1, 300, 600)
        async with engine(path, checked, disk_cache_dir=directory) as running:
            assert await texts_of(running, 1, 300, 600) == expected
        async with engine(path, checked, disk_cache_dir=directory) as running:
            assert await texts_of(running, 1, 300, 600) == expected
            report = await running.client.idle_report()
            while report.prompt_tokens_total < 600:
                report = await running.client.idle_report()
        async with engine(path, checked, host_cache_bytes=1 << 20) as running:
            await texts_of(running, 1, 300, 600)
    finally:
        Client.num_blocks = client_blocks
    assert report.tiers.loaded_tokens_total >= 150
    assert report.tiers.disk_bytes > 15 * TIERED.block_bytes
    assert report.tiers.errors_total == report.tiers.quarantined_total == 0


@async_test
async def test_a_tier_too_small_for_a_block_ends_the_start(path: Path):
    with pytest.raises(ConfigError, match="host_cache_bytes is 100"):
        await serve_engine(
            process(path, host_cache_bytes=100),
            build=checked,
            clock=MonotonicClock(),
            report=lambda _: None,
            stop=asyncio.Event(),
        )


@async_test
async def test_a_prefix_comes_from_another_engine_and_texts_are_the_same(path: Path):
    client_blocks, Client.num_blocks = Client.num_blocks, TIERED.num_blocks
    other = path.with_name("other.sock")
    source = KvSource(ReplicaId("r0"), str(path.with_suffix(".kv")), 12)
    try:
        async with engine(path, checked) as first, engine(other, checked) as second:
            assert (await first.generate("a", range(200), 5)).cached_tokens == 0
            for name, asks in (("b", source), ("c", None)):
                request = Request(
                    id=RequestId(name), prompt=tuple(range(200)), max_tokens=5, source=asks
                )
                second.link.submit(request)
                assert (await second.client.end(name)).cached_tokens == 192
                assert second.client.tokens[name] == first.client.tokens["a"]
            first.stop.set()
            await first.task  # it is gone, and what it has
            gone = Request(
                id=RequestId("d"),
                prompt=tuple(range(500, 700)),
                max_tokens=5,
                source=source,
            )
            second.link.submit(gone)
            assert (await second.client.end("d")).finish is FinishReason.LENGTH
            report = await second.client.idle_report()
            while report.prompt_tokens_total < 600:
                report = await second.client.idle_report()
    finally:
        Client.num_blocks = client_blocks
    assert report.tiers.peer_tokens_total == 192
    assert report.tiers.peer_missed_total > 0
    assert report.kv_blocks_free == report.kv_blocks_total
    assert not list(path.parent.glob("*.kv"))
