"""Break real servers under load and count what clients lose.

    python benchmarks/faults/run.py --seeds 20 --json faults.json --markdown faults.md

Each run lets 8 clients work on ``headrace serve simulated`` with a few replicas (one server for all
seeds of a fault, where the fault leaves one), strikes at a seeded moment, waits until the server is
whole again, and holds every token that any client heard against the text that the model must give
(``headrace.testing.stream_checks``). Every fault is then played again with what should help
switched off (migration, retries, patience), which must cost requests, or the fault shows nothing.
Exit code 1 if a promise was broken, or an ablation cost nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from foreign import FakeTexts
from injections import FAULTS, time_to_abort
from measure import cost, reduce_run
from stage import QUICK, Pace, opened_place, proxied
from tables import markdown, summary_lines

from headrace.bench.environment import Environment, describe_environment
from headrace.clock import MonotonicClock
from headrace.testing.stream_checks import Oracle
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from injections import Ablation, Fault
    from measure import Run
    from stage import Place, Stage

    from headrace.testing.stream_checks import Texts

RUN_LIMIT_S = 60.0
WARM_REQUESTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All runs, and where and with what they were made."""

    environment: Environment
    clients: int
    seeds: int
    runs: Sequence[Run]


async def play(stage: Stage, fault: Fault, texts: Texts, *, seed: int, mode: str) -> Run:
    """Load, strike, wait, look."""
    await stage.until_quiet()
    before = stage.census()
    load = asyncio.create_task(stage.crowd.closed_loop(stage.clients, stage.next_asked, stage.stop))
    try:
        await asyncio.sleep(stage.pace.before_s)
        await fault.inject(stage)
        if stage.recovery and fault.loses:
            await stage.recovery
        if not fault.ends:
            await asyncio.sleep(stage.pace.after_s)
    finally:
        stage.stop.set()
        if stage.recovery:
            stage.recovery.cancel()
    await load
    if fault.name == "F11":
        await time_to_abort(stage)
    return await reduce_run(stage, fault, texts, seed=seed, mode=mode, before=before)


@dataclass(frozen=True, slots=True)
class Series:
    """One fault with one thing switched off, or none, over seeds."""

    fault: Fault
    ablation: Ablation | None
    seeds: range

    @property
    def mode(self) -> str:
        """What is switched off."""
        return "" if self.ablation is None else self.ablation.name

    def place(self, model: Path, pace: Pace) -> AbstractContextManager[Place]:
        """Start a server."""
        fault = self.fault
        off = {} if self.ablation is None else self.ablation.settings
        return opened_place(
            f"simulated:{model}",
            pace=pace,
            replicas=fault.replicas,
            settings={**fault.settings, **off},
            fakes=fault.fakes,
        )

    async def run(self, place: Place, texts: Texts, *, seed: int, clients: int, warm: bool) -> Run:
        """Play one seed, within RUN_LIMIT_S."""
        stage = place.stage(random.Random(f"{self.fault.name}/{seed}"), clients)
        async with asyncio.timeout(RUN_LIMIT_S), AsyncExitStack() as stack:
            if self.fault.proxied:
                await stack.enter_async_context(proxied(stage))
            if not warm:
                asked = (stage.next_asked() for _ in range(WARM_REQUESTS))
                await asyncio.gather(*map(stage.crowd.ask, asked))
            return await play(stage, self.fault, texts, seed=seed, mode=self.mode)


def play_series(series: Series, model: Path, args: argparse.Namespace) -> list[Run | None]:
    """Play all seeds of a series; None for one whose run itself failed."""
    fault, clock = series.fault, MonotonicClock()
    texts = FakeTexts() if fault.fakes else Oracle(model)
    pace = QUICK if args.quick else Pace()
    runs: list[Run | None] = []
    with ExitStack() as stack:
        place: Place | None = None
        for seed in series.seeds:
            begun, run, warm = clock.now(), None, place is not None
            if place is None:
                place = stack.enter_context(series.place(model, pace))
            try:
                run = asyncio.run(
                    series.run(place, texts, seed=seed, clients=args.clients, warm=warm)
                )
            except (RuntimeError, OSError, TimeoutError) as error:
                print(f"{fault.name:<5} seed {seed}: the run itself failed: {error!r}", flush=True)
            is_spoilt = run is None or run.kv_blocks_held or (run.faults and not run.mode)
            if is_spoilt or not fault.leaves_all_well:
                stack.close()
                place = None
            if run is not None:
                run = replace(run, seconds=round(clock.now() - begun, 1))
                print("\n".join(summary_lines(run)), flush=True)
            runs.append(run)
    return runs


def all_series(args: argparse.Namespace) -> Iterator[Series]:
    """Yield faults as they are, and with what helps switched off."""
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    few = seeds if args.ablation_seeds is None else seeds[: args.ablation_seeds]
    for fault in (FAULTS[name] for name in args.faults.split(",")):
        if args.ablation != "only":
            yield Series(fault, None, seeds)
        if args.ablation != "none" and fault.ablation is not None:
            yield Series(fault, fault.ablation, few)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--faults", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}")
    add("--seeds", type=int, default=1, help="runs of each")
    add("--first-seed", type=int, default=0)
    add("--clients", type=int, default=8)
    add("--ablation", choices=("none", "only", "both"), default="both")
    add("--ablation-seeds", type=int, metavar="N", help="fewer runs of what is switched off")
    add("--jobs", type=int, default=1, metavar="N", help="faults played at one time")
    add("--quick", action="store_true", help="short runs, for tests")
    add("--json", type=Path, help="write all figures there")
    add("--markdown", type=Path, help="write the tables there")
    args = parser.parse_args()
    unknown = [name for name in args.faults.split(",") if name not in FAULTS]
    if unknown:
        parser.error(f"no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    return args


def main() -> int:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    environment = describe_environment([Path(word).name for word in sys.argv])
    print(f"commit {environment.commit}, {environment.cores} cores of {environment.cpu}")
    series = list(all_series(args))
    total, clock = sum(len(each.seeds) for each in series), MonotonicClock()
    found: list[Run | None] = []
    begun = clock.now()
    with (
        tempfile.TemporaryDirectory(prefix="faults-model-") as directory,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        model = write_tiny_gguf(Path(directory) / "tiny.gguf")
        for played in pool.map(lambda each: play_series(each, model, args), series):
            found += played
            print(f"      {len(found)} of {total} runs, {clock.now() - begun:.0f} s", flush=True)
    runs = [run for run in found if run is not None]
    report = Report(environment=environment, clients=args.clients, seeds=args.seeds, runs=runs)
    tables = markdown(environment, runs)
    print(f"\n{tables}")
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    if args.markdown:
        args.markdown.write_text(tables)
    return 1 if len(runs) < total or any(failures(runs)) else 0


def failures(runs: Sequence[Run]) -> Iterator[str]:
    """Say what did not go as it must: promises broken, ablations that cost nothing."""
    yield from (fault for run in runs if not run.mode for fault in run.faults)
    costs: dict[tuple[str, str], int] = {}
    for run in runs:
        if run.mode:
            key = run.fault, run.mode
            costs[key] = costs.get(key, 0) + cost(run)
    for (fault, mode), total in costs.items():
        if not total:
            print(f"{fault} with {mode} cost nothing: it shows nothing")
            yield fault


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
