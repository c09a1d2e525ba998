"""What a saturating load of class batch does to interactive requests, on the real server.

    python benchmarks/serve/real_isolation.py --hf-dir DIR [--seconds 90] [--json FILE]

The same load and bars as in virtual time (../twin/isolation.py): B's requests in class
interactive, with their targets, as a Poisson process at 30 % of the rate of workload B, alone and
beside 64 clients that ask for batch requests without a pause. A planned step is the p95 of the
gaps between tokens of interactive requests beside the backlog: each gap is one step. Servers
before classes serve everyone alike. ``--server NAME`` takes a ``--variant``. Exits 1 if a bar is
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import servers
from processes import Server, end_on_sigterm
from workloads import GREEDY, Driver, Prompts

from headrace.bench.client import Call, Client
from headrace.bench.command import loop_factory
from headrace.bench.config import Goodput, OpenLoop, Target
from headrace.bench.environment import Environment, describe_environment
from headrace.bench.prompts import english, load_counter, reference
from headrace.bench.runner import Load
from headrace.bench.schedule import arrival_times
from headrace.bench.stats import summarise
from headrace.clock import MonotonicClock
from headrace.types import PriorityClass

sys.path.insert(0, str(Path(__file__).parents[1] / "twin"))
from isolation import BATCH, INTERACTIVE, ITL, SHARE, TTFT, Bar, Phase, judge, ms_at, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.bench.client import Outcome
    from headrace.bench.stats import Sample
    from headrace.types import Seconds

CLIENTS = 64  # of batch requests
WARM_UP = 20.0  # s in which nothing is counted: 64 prompts of 512 tokens come first
GOODPUT = Goodput(ttft_ms=1000 * TTFT, itl_ms=1000 * ITL)
INTERACTIVE_HEADERS = {
    "x-headrace-class": PriorityClass.INTERACTIVE.value,
    "x-headrace-ttft-ms": f"{1000 * TTFT:g}",
    "x-headrace-itl-ms": f"{1000 * ITL:g}",
}
BATCH_HEADERS = {"x-headrace-class": PriorityClass.BATCH.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is written."""

    environment: Environment
    server: str
    saturated_per_s: float
    phases: Sequence[Phase]
    bars: Sequence[Bar]


class Loads:
    """Both loads against one server."""

    def __init__(self, base_url: str, model: str, prompts: Prompts) -> None:
        self._clock = MonotonicClock()
        self._prompts = prompts
        self._target = Target(base_url=base_url)
        self._model = model
        self._number = 0

    def client(self, headers: dict[str, str]) -> Client:
        """Return a client whose requests carry ``headers``."""
        target = replace(self._target, headers=headers)
        return Client(target=target, model=self._model, clock=self._clock)

    async def saturated_rate(self) -> float:
        """Run B; return its requests a second."""
        driver = Driver(self.client({}), self._clock, self._prompts)
        await driver.warm_up()
        return (await driver.run("B")).requests_per_s

    async def phase(self, name: str, seconds: Seconds, *, rate: float, clients: int) -> Phase:
        """Run interactive requests at ``rate`` beside ``clients`` of batch."""
        begin = self._clock.now() + WARM_UP
        outcomes: list[Outcome] = []
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(self._job(outcomes, enough))
            await asyncio.sleep(WARM_UP)
            samples = await self._people(rate, seconds)
            end = self._clock.now()
            enough.set()
        tokens = sum(begin <= at < end for outcome in outcomes for at in outcome.piece_times)
        return phase_of(name, samples, tokens / (end - begin))

    async def _people(self, rate: float, seconds: Seconds) -> list[Sample]:
        if not rate:
            await asyncio.sleep(seconds)
            return []
        self._number += 1
        rng = self._prompts.rng(chr(self._number))
        count = max(1, round(rate * seconds))
        load = Load(client=self.client(INTERACTIVE_HEADERS), clock=self._clock, max_in_flight=4096)
        calls = [self._call(*INTERACTIVE) for _ in range(count)]
        await load.open(calls, times=arrival_times(OpenLoop(rate=rate), count=count, rng=rng))
        return load.samples

    async def _job(self, outcomes: list[Outcome], enough: asyncio.Event) -> None:
        """Ask for one batch request after another; the last one ends after ``enough``."""
        client = self.client(BATCH_HEADERS)
        while not enough.is_set():
            outcomes.append(await client.generate(self._call(*BATCH)))

    def _call(self, tokens: int, max_tokens: int) -> Call:
        """Return the next request; no two have the same prompt."""
        self._number += 1
        rng = self._prompts.rng(chr(1000 + self._number))
        prompt = english(rng, tokens=tokens, count=self._prompts.count, head=reference(rng))
        return Call(prompt=prompt, max_tokens=max_tokens, fields=GREEDY)


def phase_of(name: str, samples: Sequence[Sample], batch_tokens_per_s: float) -> Phase:
    """Reduce a run."""
    gaps = sorted(
        after - before
        for sample in samples
        for before, after in pairwise(sample.outcome.piece_times)
    )
    summary = summarise(samples, goodput=GOODPUT) if samples else None
    ttft = summary.ttft_ms if summary else None
    return Phase(
        name=name,
        requests=len(samples),
        completed_per_s=round(summary.requests_per_s, 3) if summary else 0.0,
        ttft_p50_ms=round(ttft.p50, 1) if ttft else 0.0,
        ttft_p95_ms=round(ttft.p95, 1) if ttft else 0.0,
        itl_p99_ms=ms_at(gaps, 0.99),
        good_share=round(summary.good_share or 0.0, 4) if summary else 0.0,
        batch_tokens_per_s=round(batch_tokens_per_s, 1),
        step_p50_ms=ms_at(gaps, 0.5),
        step_p95_ms=ms_at(gaps, 0.95),
    )


async def play(base_url: str, prompts: Prompts, seconds: Seconds) -> tuple[float, list[Phase]]:
    """Run all phases; return the saturated rate and what was seen: alone, batch, both."""
    listing = Client(target=Target(base_url=base_url), model="", clock=MonotonicClock())
    loads = Loads(base_url, (await listing.list_models())[0], prompts)
    saturated = await loads.saturated_rate()
    rate = SHARE * saturated
    print(f"saturated at {saturated:.2f} requests/s, interactive at {rate:.2f}", flush=True)
    return saturated, [
        await loads.phase("interactive alone", seconds, rate=rate, clients=0),
        await loads.phase("batch alone", seconds, rate=0.0, clients=CLIENTS),
        await loads.phase("both", seconds, rate=rate, clients=CLIENTS),
    ]


def main() -> int:
    """Start a server, play, print, write; exit code 1 if a bar is missed."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--server", default=servers.OURS)
    parser.add_argument("--seconds", type=float, default=90.0, help="of each phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    servers.add_arguments(parser)
    args = parser.parse_args()
    prompts = Prompts(load_counter(str(Path(args.hf_dir) / "tokenizer.json")), args.seed, 1)
    spec = servers.build_spec(args.server, args, args.first_port)
    with (
        tempfile.TemporaryDirectory() as logs,
        Server(spec, Path(logs) / "server.log"),
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        saturated, phases = runner.run(play(spec.base_url, prompts, args.seconds))
    bars = judge(*phases)
    show(phases, bars)
    if args.json is not None:
        result = Result(
            environment=describe_environment([Path(word).name for word in sys.argv]),
            server=args.server,
            saturated_per_s=round(saturated, 3),
            phases=phases,
            bars=bars,
        )
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 0 if all(bar.reached for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
