"""Public traces in the twin: how fast it is, and what policies make of shared prefixes.

    python benchmarks/twin/traces.py azure --data DIR [--json FILE]
    python benchmarks/twin/traces.py mooncake --data DIR [--rates 1 1.25] [--json FILE]

DIR holds AzureLLMInferenceTrace_conv.csv.gz (https://github.com/Azure/AzurePublicDataset) or
conversation_trace.jsonl.gz (https://github.com/kvcache-ai/Mooncake, FAST25-release), plain or gzip.

azure: 58 minutes on 8 replicas of llama-3.1-8b, one H100 each; what counts is the time it takes.
mooncake: 59 minutes on 8 replicas of llama-3.1-70b, four H100 each; policies side by side, each
from an empty cache. Arrivals come in ticks of 3 s, as recorded: bursts that a policy must spread.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.bench.environment import Environment, describe_environment
from headrace.core.costs.roofline import Deployment
from headrace.errors import UsageError
from headrace.twin.cluster import build_cluster
from headrace.twin.config import Pool, SimulationConfig
from headrace.twin.figures import Figures, figures_of
from headrace.twin.hardware import GPUS
from headrace.twin.models import MODELS
from headrace.twin.report import to_comparison, to_table
from headrace.twin.traces.opening import open_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.twin.traces.arrivals import Trace

REPLICAS = 8
POLICIES = ("round_robin", "least_requests", "predicted_ttft")
AZURE = SimulationConfig(
    deployment=Deployment(model=MODELS["llama-3.1-8b"], gpu=GPUS["h100"]),
    pool=Pool(replicas=REPLICAS, floor=REPLICAS, ceiling=REPLICAS),
)
MOONCAKE = SimulationConfig(
    deployment=Deployment(model=MODELS["llama-3.1-70b"], gpu=GPUS["h100"], tp=4),
    pool=Pool(replicas=REPLICAS, floor=REPLICAS, ceiling=REPLICAS),
    block_size=128,  # of the trace's 512: coarser than engines, for speed; nothing else changes
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRun:
    """A run, and how long it took on this machine."""

    rate: float
    wall_seconds: float
    processor_seconds: float
    speed_up: float  # seconds of the trace in a second of the wall clock
    steps: int
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is written."""

    environment: Environment
    runs: Sequence[TimedRun]


def play(config: SimulationConfig, trace: Trace, rate: float) -> TimedRun:
    """Run once, timed."""
    gc.freeze()
    wall, processor = time.perf_counter(), time.process_time()
    cluster = build_cluster(config, trace)
    cluster.run()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    figures = figures_of(cluster, trace)
    return TimedRun(
        rate=rate,
        wall_seconds=round(wall, 1),
        processor_seconds=round(processor, 1),
        speed_up=round(figures.seconds / wall, 1),
        steps=sum(row.steps for row in figures.replicas),
        figures=figures,
    )


def play_azure(trace: Trace) -> list[TimedRun]:
    """One run; prints its table."""
    run = play(AZURE, trace, 1.0)
    print(to_table(run.figures))
    _print_time(run)
    return [run]


def play_mooncake(trace: Trace, rates: Sequence[float]) -> list[TimedRun]:
    """Every policy at every rate; prints comparisons."""
    runs: list[TimedRun] = []
    for rate in rates:
        faster = trace.faster(rate)
        here = [play(replace(MOONCAKE, policy=policy), faster, rate) for policy in POLICIES]
        print(f"rate x {rate:g}")
        print(to_comparison([run.figures for run in here]))
        for run in here:
            _print_time(run)
        tokens = REPLICAS * here[0].figures.setup.kv_tokens
        ideal = ideal_share(trace, tokens)
        print(f"one cache of all {tokens:,} tokens would have {ideal:.1%}")
        runs += here
    return runs


def ideal_share(trace: Trace, capacity: int) -> float:
    """Return the share of prompt tokens that one cache of ``capacity`` tokens would have.

    Least recently used blocks go first, those at a prompt's end before those at its beginning;
    it serves every request at once, where the one before has been.
    """
    cache: OrderedDict[int, int] = OrderedDict()
    used = hits = total = 0
    for arrival in trace.arrivals:
        known = list(takewhile(lambda piece: piece.key in cache, arrival.prompt))
        hits += sum(piece.length for piece in known)
        total += arrival.prompt_tokens
        for piece in reversed(arrival.prompt):
            used += piece.length - cache.pop(piece.key, 0)
            cache[piece.key] = piece.length
        while used > capacity:
            used -= cache.popitem(last=False)[1]
    return hits / total


def _print_time(run: TimedRun) -> None:
    print(
        f"{run.figures.setup.policy}: {run.steps:,} steps in {run.wall_seconds:g} s "
        f"({run.processor_seconds:g} s of processor), {run.speed_up:g} times real time"
    )


def find_trace(folder: Path, name: str) -> str:
    """Return the path of a trace, plain or gzip. Raises UsageError."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return str(path)
    raise UsageError(f"neither {name} nor {name}.gz in the folder of --data")


def main() -> int:
    """Play, print, write."""
    parser = argparse.ArgumentParser(description="public traces in the twin")
    parser.add_argument("what", choices=["azure", "mooncake"])
    parser.add_argument("--data", type=Path, required=True, help="folder with the trace")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0], help="(mooncake)")
    parser.add_argument("--limit", type=int, help="only the first requests")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.what == "azure":
        name = find_trace(args.data, "AzureLLMInferenceTrace_conv.csv")
        runs = play_azure(open_trace(name, seed=0, limit=args.limit))
    else:
        name = find_trace(args.data, "conversation_trace.jsonl")
        runs = play_mooncake(open_trace(name, seed=0, limit=args.limit), args.rates)
    if args.json is not None:
        words = ["python", "benchmarks/twin/traces.py", args.what, "--data", "DIR"]
        words += ["--rates", *map(str, args.rates)] if args.what == "mooncake" else []
        result = Result(environment=describe_environment(words), runs=runs)
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
