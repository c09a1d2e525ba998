"""Minutes of mixed load on our server, and proof that nothing is lost or leaked.

    python benchmarks/serve/soak.py --minutes 5 --tokenizer tokenizer.json

Streamed and whole answers, chat and completions, prompts of 12 to 600 tokens, many sampling
settings, a tenth of the clients going away in the middle. Meanwhile memory, file descriptors and
processes of the server's tree are sampled. Fails (exit 1) on any error, on a KV block still used
when all is quiet, on a file descriptor or process more than after the warm-up, and on memory
that grows faster than --max-slope after the first fifth of the time.

The warm-up lasts until the KV cache has been in use whole: its pages cost nothing before they are
touched, so until then memory grows without a leak. A warm-up that does not get there in
--fill-seconds is a fault, for the slope would say nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from processes import Footprint, Server, ServerSpec
from workloads import Prompts

from headrace.bench.client import Call, Client
from headrace.bench.command import loop_factory
from headrace.bench.config import Endpoint, JsonValue, Target
from headrace.bench.environment import Environment, describe_environment
from headrace.bench.prompts import english, guess_tokens, load_counter, reference
from headrace.bench.stats import Sample, Summary, summarise
from headrace.clock import MonotonicClock

if TYPE_CHECKING:
    from collections.abc import Sequence

INPUT_TOKENS = (12, 40, 128, 300, 600)
OUTPUT_TOKENS = (1, 8, 32, 96)
SETTLE_S = 15.0  # what the server gets to become quiet
SAMPLE_EVERY_S = 5.0
WARMUP_SHARE = 0.2
NEARLY_ALL = 0.99  # of the KV blocks: one is always just given back
GOING_AWAY_S = (0.02, 1.5)  # when the client of a whole answer goes away
SAMPLING: tuple[dict[str, JsonValue], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9, "seed": 7},
    {"temperature": 1.0, "top_k": 20, "min_p": 0.05},
    {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 0.7, "repetition_penalty": 1.2},
    {"temperature": 0.0, "stop": [" the", "\n\n"]},
    {"temperature": 0.0, "ignore_eos": True},
    {"temperature": 1.0, "n": 2},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The server at a time (seconds from the start)."""

    at: float
    footprint: Footprint
    kv_used: float | None


@dataclass(slots=True, kw_only=True)
class Soak:
    """What a soak gathers."""

    points: list[Point] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    gone: int = 0  # clients of whole answers that went away


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a soak found."""

    environment: Environment
    minutes: float
    command: Sequence[str]
    summary: Summary
    gone: int
    filled_s: float | None  # until the KV cache had been in use whole; None: never, or not asked
    quiet_before: Point
    quiet_after: Point
    rss_slope_mb_per_min: float
    pss_slope_mb_per_min: float
    faults: Sequence[str]
    points: Sequence[Point]


class Users:
    """Clients, each sending its next request when the last has ended."""

    def __init__(
        self, *, client: Client, prompts: Prompts, cancel_share: float, soak: Soak
    ) -> None:
        self._client = client
        self._prompts = prompts
        self._cancel_share = cancel_share
        self._soak = soak
        self._clock = MonotonicClock()

    async def run(self, *, number: int, until: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            for index in range(number):
                rng = np.random.default_rng((self._prompts.seed, index))
                tasks.create_task(self._one(rng, until))

    async def _one(self, rng: np.random.Generator, until: float) -> None:
        while (now := self._clock.now()) < until:
            call = self._next_call(rng)
            goes_away = not call.stream and rng.random() < self._cancel_share
            patience = float(rng.uniform(*GOING_AWAY_S)) if goes_away else None
            try:
                async with asyncio.timeout(patience):
                    outcome = await self._client.generate(call)
            except TimeoutError:
                self._soak.gone += 1
                continue
            self._soak.samples.append(Sample(due_at=now, outcome=outcome))

    def _next_call(self, rng: np.random.Generator) -> Call:
        tokens = int(rng.choice(INPUT_TOKENS))
        prompt = english(rng, tokens=tokens, count=self._prompts.count, head=reference(rng))
        stream = bool(rng.random() < 0.7)
        length = int(rng.choice(OUTPUT_TOKENS))
        is_cut = stream and rng.random() < self._cancel_share
        return Call(
            prompt=prompt,
            max_tokens=length,
            endpoint=Endpoint.CHAT if rng.random() < 0.5 else Endpoint.COMPLETIONS,
            stream=stream,
            cut_after=int(rng.integers(length)) if is_cut else None,
            fields=SAMPLING[int(rng.integers(len(SAMPLING)))],
        )


class Observer:
    """Looks at the server from outside."""

    def __init__(self, *, server: Server, client: Client, metric: str, empty_metric: str) -> None:
        self._server = server
        self._client = client
        self._metric = metric
        self._empty_metric = empty_metric
        self._clock = MonotonicClock()
        self._origin = self._clock.now()

    async def look(self) -> Point:
        used = None
        if self._metric:
            text = (await self._client.get("/metrics")).decode()
            used = read_metric(text, self._metric)
        return Point(
            at=self._clock.now() - self._origin,
            footprint=self._server.footprint(),
            kv_used=used,
        )

    async def watch(self, points: list[Point]) -> None:
        while True:
            await asyncio.sleep(SAMPLE_EVERY_S)
            points.append(await self.look())

    async def has_been_full(self) -> bool:
        """Whether the KV cache is in use whole (True if nobody says how to tell)."""
        if not self._empty_metric:
            return True
        text = (await self._client.get("/metrics")).decode()
        empty = read_metric(text, self._empty_metric)
        total = read_metric(text, self._empty_metric.partition("{")[0])
        return bool(total) and empty is not None and empty <= (1 - NEARLY_ALL) * (total or 0.0)

    async def quiet(self) -> Point:
        """Wait until nothing is used any more, or for SETTLE_S; return what is there then."""
        deadline = self._clock.now() + SETTLE_S
        await asyncio.sleep(1.0)
        point = await self.look()
        while point.kv_used and self._clock.now() < deadline:
            await asyncio.sleep(0.5)
            point = await self.look()
        return point


def read_metric(text: str, wanted: str) -> float | None:
    """Add up the samples of ``name{label="value",...}`` in Prometheus text; None if there is none.

    A sample may have more labels than are wanted.
    """
    name, _, labels = wanted.partition("{")
    pairs = re.findall(r'\w+="[^"]*"', labels)
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if re.match(rf"{re.escape(name)}[{{ ]", line) and all(pair in line for pair in pairs)
    ]
    return sum(values) if values else None


def slope_per_minute(times: Sequence[float], values: Sequence[float]) -> float:
    """Least squares; 0 for fewer than three points."""
    if len(times) < 3:
        return 0.0
    return float(np.polyfit(np.asarray(times) / 60, np.asarray(values), 1)[0])


async def warm_up(users: Users, observer: Observer, args: argparse.Namespace) -> float | None:
    """Load the server until its KV cache has been in use whole; return how long it took.

    Not less than --warm-seconds, nor more than --fill-seconds (None).
    """
    clock = MonotonicClock()
    began = clock.now()
    load = asyncio.create_task(users.run(number=args.users, until=began + args.fill_seconds))
    await asyncio.sleep(args.warm_seconds)
    is_full = await observer.has_been_full()
    while not is_full and not load.done():
        await asyncio.sleep(1.0)
        is_full = await observer.has_been_full()
    load.cancel()
    with suppress(asyncio.CancelledError):
        await load
    return clock.now() - began if is_full else None


def find_faults(
    result: Summary, before: Point, after: Point, slope: float, args: argparse.Namespace
) -> list[str]:
    faults = [f"{e.count} x {e.kind}: {e.example}" for e in result.errors]
    for name in ("fds", "processes"):
        had, has = asdict(before.footprint)[name], asdict(after.footprint)[name]
        if has > had:
            faults.append(f"{name}: {had} when quiet before, {has} when quiet after")
    if args.kv_metric and after.kv_used is None:
        faults.append(f"/metrics has no {args.kv_metric} (--kv-metric)")
    if after.kv_used:
        faults.append(f"{after.kv_used:g} KV blocks still used {SETTLE_S:g} s after the load")
    if slope > args.max_slope:
        faults.append(f"RSS grows by {slope:.2f} MB/min > {args.max_slope:g} (--max-slope)")
    return faults


async def soak(server: Server, args: argparse.Namespace) -> Result:
    clock = MonotonicClock()
    target = Target(base_url=server.spec.base_url, request_timeout=120.0)
    model = (await Client(target=target, model="", clock=clock).list_models())[0]
    client = Client(target=target, model=model, clock=clock)
    count = load_counter(args.tokenizer) if args.tokenizer else guess_tokens
    prompts = Prompts(count, args.seed, 1)
    warm = Soak()
    users = Users(client=client, prompts=prompts, cancel_share=0.1, soak=warm)
    observer = Observer(
        server=server, client=client, metric=args.kv_metric, empty_metric=args.empty_metric
    )
    filled_s = await warm_up(users, observer, args)
    before = await observer.quiet()
    found = Soak()
    users = Users(client=client, prompts=prompts, cancel_share=args.cancel, soak=found)
    watching = asyncio.create_task(observer.watch(found.points))
    try:
        await users.run(number=args.users, until=clock.now() + args.minutes * 60)
    finally:
        watching.cancel()
    after = await observer.quiet()
    result = judge(server, args, found, before=before, after=after)
    if filled_s is not None:
        return replace(result, filled_s=filled_s)
    fault = f"the KV cache has not been in use whole after {args.fill_seconds:g} s (--fill-seconds)"
    return replace(result, faults=[*result.faults, fault])


def judge(
    server: Server, args: argparse.Namespace, found: Soak, *, before: Point, after: Point
) -> Result:
    late = found.points[int(len(found.points) * WARMUP_SHARE) :]
    times = [point.at for point in late]
    rss = slope_per_minute(times, [point.footprint.rss_mb for point in late])
    pss = slope_per_minute(times, [point.footprint.pss_mb for point in late])
    summary = summarise(found.samples)
    return Result(
        environment=describe_environment([Path(word).name for word in sys.argv]),
        minutes=args.minutes,
        command=[Path(word).name for word in server.spec.command],
        summary=summary,
        gone=found.gone,
        filled_s=None,
        quiet_before=before,
        quiet_after=after,
        rss_slope_mb_per_min=rss,
        pss_slope_mb_per_min=pss,
        faults=find_faults(summary, before, after, rss, args),
        points=found.points,
    )


def print_result(result: Result) -> None:
    run = result.summary
    print(
        f"{run.requests + result.gone} requests in {result.minutes:g} min:"
        f" {run.completed} completed, {run.cut + result.gone} cut, {run.failed} failed;"
        f" {run.output_tokens_per_s:.1f} output tokens/s"
    )
    for name, point in (("quiet before", result.quiet_before), ("quiet after", result.quiet_after)):
        foot = point.footprint
        print(
            f"{name:<13} RSS {foot.rss_mb:,.0f} MB, PSS {foot.pss_mb:,.0f} MB, {foot.fds} fds,"
            f" {foot.processes} processes, KV blocks used {point.kv_used}"
        )
    print(f"RSS slope after the first fifth: {result.rss_slope_mb_per_min:+.2f} MB/min")
    for fault in result.faults:
        print(f"FAULT {fault}")
    print(f"{'failed' if result.faults else 'passed'} ({len(result.points)} looks at the server)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = f"{shlex.quote(sys.executable)} -m headrace serve --port {{port}}"
    add("--command", default=default, help="the server; {port} is filled in")
    add("--port", type=int, default=8190)
    add("--ready-path", default="/ready")
    add("--minutes", type=float, default=5.0)
    add("--warm-seconds", type=float, default=20.0, help="load before anything is judged")
    add("--fill-seconds", type=float, default=300.0, help="for the KV cache to be in use whole")
    add("--users", type=int, default=16)
    add("--cancel", type=float, default=0.1, help="share of clients that go away")
    add("--kv-metric", default='headrace_kv_blocks{state="used"}', help="'' for none")
    add("--empty-metric", default='headrace_kv_blocks{state="empty"}', help="'' for none")
    add("--max-slope", type=float, default=2.0, help="MB of RSS a minute (default: 2)")
    add("--tokenizer", help="a tokenizer.json, for exact prompt lengths")
    add("--seed", type=int, default=1)
    add("--json", type=Path, help="write the result there")
    add("--log", type=Path, help="the server's log (default: a temporary file)")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    command = shlex.split(args.command.replace("{port}", str(args.port)))
    spec = ServerSpec(name="ours", command=command, port=args.port, ready_path=args.ready_path)
    log = args.log or Path(tempfile.mkdtemp(prefix="soak-")) / "server.log"
    with Server(spec, log) as server, asyncio.Runner(loop_factory=loop_factory()) as runner:
        result = runner.run(soak(server, args))
    print_result(result)
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(result)), indent=1))
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
