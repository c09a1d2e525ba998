"""Send the load that a configuration describes, and gather what came of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import numpy as np

from headrace.bench.client import Call, Client, Failure, Outcome
from headrace.bench.config import BenchConfig, ClosedLoop, Endpoint, OpenLoop
from headrace.bench.http import ExchangeFailed, FailureKind
from headrace.bench.prompts import guess_tokens, load_counter, read_prompts, synthetic
from headrace.bench.report import Report, describe_run
from headrace.bench.schedule import arrival_times
from headrace.bench.stats import Sample, summarise
from headrace.clock import Clock, MonotonicClock
from headrace.errors import StartError, Unreachable, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.bench.config import JsonValue
    from headrace.bench.prompts import PromptLine
    from headrace.types import Seconds

PROGRESS_INTERVAL_S = 0.25


class Progress(Protocol):
    """Is told how far a run has come."""

    def update(self, *, done: int, failed: int, total: int) -> None:
        """Take the counts."""
        ...


class RunFailed(StartError):
    """The server answers, and not with what a benchmark needs."""


class Load:
    """Sends calls and keeps a sample of each. One object a run."""

    def __init__(self, *, client: Client, clock: Clock, max_in_flight: int) -> None:
        self._client = client
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self.samples: list[Sample] = []

    async def closed(self, calls: Sequence[Call], *, concurrency: int) -> None:
        """Send all calls, ``concurrency`` at a time, in order."""
        remaining = iter(calls)

        async def one_client() -> None:
            for call in remaining:
                await self._send(call, due_at=self._clock.now())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(concurrency, len(calls))):
                tasks.create_task(one_client())

    async def open(self, calls: Sequence[Call], *, times: Sequence[Seconds]) -> None:
        """Send each call at its time from now, however many are unanswered."""
        origin = self._clock.now()
        async with asyncio.TaskGroup() as tasks:
            for call, time in zip(calls, times, strict=True):
                due_at = origin + time
                await asyncio.sleep(max(0.0, due_at - self._clock.now()))
                if self._in_flight >= self._max_in_flight:
                    self._refuse(due_at)
                else:
                    self._in_flight += 1
                    tasks.create_task(self._send_counted(call, due_at=due_at))

    async def _send_counted(self, call: Call, *, due_at: Seconds) -> None:
        try:
            await self._send(call, due_at=due_at)
        finally:
            self._in_flight -= 1

    async def _send(self, call: Call, *, due_at: Seconds) -> None:
        outcome = await self._client.generate(call)
        self.samples.append(Sample(due_at=due_at, outcome=outcome))

    def _refuse(self, due_at: Seconds) -> None:
        message = f"{self._max_in_flight} requests are in flight (--max-in-flight)"
        failure = Failure(kind=FailureKind.CLIENT_LIMIT, message=message)
        now = self._clock.now()
        outcome = Outcome(started_at=now, ended_at=now, failure=failure)
        self.samples.append(Sample(due_at=due_at, outcome=outcome))


async def run(
    config: BenchConfig, *, clock: Clock | None = None, progress: Progress | None = None
) -> Report:
    """Run a benchmark. Raises Unreachable, UsageError or RunFailed before any load is sent."""
    clock = clock or MonotonicClock()
    rng = np.random.default_rng(config.seed)
    lines = make_prompts(config, rng)
    calls = make_calls(config, lines, rng)
    model = await choose_model(config, clock)
    client = Client(target=config.target, model=model, clock=clock)
    load = Load(client=client, clock=clock, max_in_flight=config.max_in_flight)
    try:
        await warm_up(client, calls[-config.warmup :] if config.warmup else ())
        async with asyncio.TaskGroup() as tasks:
            watcher = tasks.create_task(_watch(load, progress, total=config.requests))
            await _apply(load, config, calls[: config.requests], rng)
            watcher.cancel()
    finally:
        client.close()
    summary = summarise(load.samples, goodput=config.goodput)
    return describe_run(config, model=model, summary=summary)


async def _apply(
    load: Load, config: BenchConfig, calls: Sequence[Call], rng: np.random.Generator
) -> None:
    match config.arrivals:
        case ClosedLoop(concurrency=concurrency):
            await load.closed(calls, concurrency=concurrency)
        case OpenLoop() as arrivals:
            await load.open(calls, times=arrival_times(arrivals, count=len(calls), rng=rng))


async def _watch(load: Load, progress: Progress | None, *, total: int) -> None:
    while progress is not None:
        failed = sum(1 for s in load.samples if s.outcome.failure is not None)
        progress.update(done=len(load.samples), failed=failed, total=total)
        await asyncio.sleep(PROGRESS_INTERVAL_S)


def make_prompts(config: BenchConfig, rng: np.random.Generator) -> list[PromptLine]:
    """Return a prompt for each request and each warm-up (which come last, and are others)."""
    number = config.requests + config.warmup
    if config.prompts_path is not None:
        lines = read_prompts(config.prompts_path)
        return [lines[index % len(lines)] for index in range(number)]
    count = load_counter(config.tokenizer_path) if config.tokenizer_path else guess_tokens
    return synthetic(rng, number=number, tokens=config.input_tokens, count=count)


def make_calls(
    config: BenchConfig, lines: Sequence[PromptLine], rng: np.random.Generator
) -> list[Call]:
    """Turn prompts into calls. The last ``warmup`` are never cut."""
    fields: dict[str, JsonValue] = dict(config.extra_body)
    if config.temperature is not None:
        fields.setdefault("temperature", config.temperature)
    if config.ignore_eos:
        fields.setdefault("ignore_eos", True)
    calls: list[Call] = []
    for index, line in enumerate(lines):
        prompt = line.content()
        if not isinstance(prompt, str) and config.endpoint is not Endpoint.CHAT:
            raise UsageError("a prompt file with messages needs --endpoint chat")
        length = line.max_tokens or config.output_tokens
        is_cut = rng.random() < config.cancel_share and index < config.requests
        calls.append(
            Call(
                prompt=prompt,
                max_tokens=length,
                endpoint=config.endpoint,
                stream=config.stream,
                cut_after=int(rng.integers(length)) if is_cut else None,
                fields=fields,
            )
        )
    return calls


async def choose_model(config: BenchConfig, clock: Clock) -> str:
    """Return the configured model, else the first that the server lists."""
    client = Client(target=config.target, model="", clock=clock)
    listed: tuple[str, ...] = ()
    try:
        listed = await client.list_models()
    except ExchangeFailed as error:
        _raise_if_hopeless(config, error.kind, error.message, error.status)
        if config.model is None:
            message = f"cannot list the server's models ({error.message}); name one with --model"
            raise RunFailed(message) from error
    if config.model is None and not listed:
        raise RunFailed("the server lists no model; name one with --model")
    if config.model is not None and listed and config.model not in listed:
        known = ", ".join(listed[:8])
        raise RunFailed(f"the server has no model {config.model!r}; it has: {known}")
    return config.model or listed[0]


async def warm_up(client: Client, calls: Sequence[Call]) -> None:
    """Send the calls one after the other. Raises RunFailed at the first failure."""
    for call in calls:
        outcome = await client.generate(call)
        failure = outcome.failure
        if failure is not None:
            status = f" (status {failure.status})" if failure.status else ""
            raise RunFailed(f"the warm-up request failed: {failure.message}{status}")


def _raise_if_hopeless(config: BenchConfig, kind: FailureKind, message: str, status: int) -> None:
    if kind in (FailureKind.CONNECT, FailureKind.TIMEOUT):
        raise Unreachable(f"{message}. Is a server running there? Try: headrace serve")
    if status in (401, 403):
        given = "the key given" if config.target.api_key else "requests without a key"
        raise RunFailed(f"the server refuses {given}: {message}. Set --api-key or OPENAI_API_KEY")
