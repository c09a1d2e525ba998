"""Break real servers under load and count what clients lose.

    python benchmarks/faults/run.py --faults F1,F2,F4 --seeds 5 --json faults.json

Each run starts ``headrace serve simulated`` with a few replicas, lets 8 clients work, strikes at a
seeded moment, waits until the server is whole again, and holds every token that any client heard
against the text that the model must give (``headrace.testing.stream_checks``). Every fault is run
with migration and, where that matters, without (``gateway.max_migrations = 0``), to show what it
does. Exit code 1 if a run with migration breaks a promise.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from foreign import FakeTexts
from injections import FAULTS, time_to_abort
from measure import reduce_run
from stage import QUICK, Pace, opened_stage
from tables import markdown, summary_lines

from headrace.bench.environment import Environment, describe_environment
from headrace.clock import MonotonicClock
from headrace.testing.stream_checks import Oracle
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from injections import Fault
    from measure import Run
    from stage import Stage

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


async def play(stage: Stage, fault: Fault, texts: Texts, *, seed: int, migration: bool) -> Run:
    """Warm up, load, strike, wait, look."""
    warm = [stage.crowd.ask(stage.next_asked()) for _ in range(WARM_REQUESTS)]
    await asyncio.gather(*warm)
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
    return await reduce_run(stage, fault, texts, seed=seed, migration=migration, before=before)


def run_once(model: Path, fault: Fault, args: argparse.Namespace, job: tuple[int, bool]) -> Run:
    """Start a server and play one fault on it."""
    seed, migration = job
    clock = MonotonicClock()
    begun = clock.now()
    texts = FakeTexts() if fault.fakes else Oracle(model)
    settings = {**fault.settings, **({} if migration else {"HEADRACE_GATEWAY_MAX_MIGRATIONS": "0"})}
    with opened_stage(
        f"simulated:{model}",
        rng=random.Random(f"{fault.name}/{seed}"),
        pace=QUICK if args.quick else Pace(),
        clients=args.clients,
        replicas=fault.replicas,
        settings=settings,
        fakes=fault.fakes,
    ) as stage:

        async def bounded() -> Run:
            async with asyncio.timeout(RUN_LIMIT_S):
                return await play(stage, fault, texts, seed=seed, migration=migration)

        run = asyncio.run(bounded())
    return replace(run, seconds=round(clock.now() - begun, 1))


def jobs(args: argparse.Namespace) -> Iterator[tuple[Fault, tuple[int, bool]]]:
    """Yield faults with seeds, with migration and without."""
    with_migration = {"on": (True,), "off": (False,), "both": (True, False)}[args.migration]
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for fault in (FAULTS[name] for name in args.faults.split(",")):
        for migration in with_migration:
            if migration or fault.migrates:
                yield from ((fault, (seed, migration)) for seed in seeds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--faults", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}")
    add("--seeds", type=int, default=1, help="runs of each")
    add("--first-seed", type=int, default=0)
    add("--clients", type=int, default=8)
    add("--migration", choices=("on", "off", "both"), default="both")
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
    runs: list[Run] = []
    crashed = 0
    with tempfile.TemporaryDirectory(prefix="faults-model-") as directory:
        model = write_tiny_gguf(Path(directory) / "tiny.gguf")
        for fault, job in jobs(args):
            try:
                run = run_once(model, fault, args, job)
            except (RuntimeError, OSError, TimeoutError) as error:
                crashed += 1
                print(
                    f"{fault.name:<5} seed {job[0]}: the run itself failed: {error!r}", flush=True
                )
                continue
            runs.append(run)
            for line in summary_lines(run):
                print(line, flush=True)
    report = Report(environment=environment, clients=args.clients, seeds=args.seeds, runs=runs)
    tables = markdown(environment, runs)
    print(f"\n{tables}")
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    if args.markdown:
        args.markdown.write_text(tables)
    return 1 if crashed or any(run.faults for run in runs if run.migration) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
