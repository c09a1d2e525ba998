"""All balancer policies side by side on public traces, in virtual time.

    python benchmarks/twin/policies.py --data DIR [--json FILE] [--markdown FILE]
    python benchmarks/twin/policies.py --data DIR --trace synthetic --rates 1.5 --policies a,b
    python benchmarks/twin/policies.py --data DIR --requests 12031 --seeds 1 --rates 2    (long)

DIR holds conversation_trace.jsonl.gz and synthetic_trace.jsonl.gz of Mooncake
(https://github.com/kvcache-ai/Mooncake, FAST25-release) and AzureLLMInferenceTrace_conv.csv.gz and
..._code.csv.gz of Azure (https://github.com/Azure/AzurePublicDataset), plain or gzip.

8 replicas of llama-3.1-70b, four H100 each, from empty caches. A **seed** is another part of the
trace: as many consecutive requests as --requests says, parts spread evenly over it, each with its
own jitter (Mooncake's clock ticks every 3 s: each request is put off by up to that), network and
policy seed. Seeds so differ by more than chance, and policies are compared part by part. Mooncake's
traces name no conversations; for policies that go by sessions the second block of a prompt names
one (the first is a system prompt that all share).

Goodput is the share of requests with TTFT <= 5 s and a mean time between tokens <= 100 ms; neither
is told to the scheduler. A step of 8,192 prompt tokens takes half a second there, so near
saturation it is the second one that streams miss. All is virtual: the speed of the machine changes
nothing but how long it takes.
"""

from __future__ import annotations

import argparse
import gc
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import msgspec
from traces import find_trace

from headrace.bench.environment import Environment, describe_environment
from headrace.core.balancer.registry import POLICIES, build_policy
from headrace.core.costs.roofline import Deployment
from headrace.monitoring.goodput import Targets
from headrace.twin.cluster import build_cluster
from headrace.twin.config import Pool, SimulationConfig
from headrace.twin.figures import Figures, figures_of
from headrace.twin.hardware import GPUS
from headrace.twin.models import MODELS
from headrace.twin.traces.opening import open_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.twin.traces.arrivals import Arrival, Trace

FILES = {
    "conversation": "conversation_trace.jsonl",
    "synthetic": "synthetic_trace.jsonl",
    "azure-conv": "AzureLLMInferenceTrace_conv.csv",
    "azure-code": "AzureLLMInferenceTrace_code.csv",
}
TICK = 3.0  # s, of Mooncake's clock
SEED_STRIDE = 1_000_003
CONFIG = SimulationConfig(
    deployment=Deployment(model=MODELS["llama-3.1-70b"], gpu=GPUS["h100"], tp=4),
    pool=Pool(replicas=8, floor=8, ceiling=8),
    block_size=512,  # as in the trace: prompts share whole blocks of it, so only speed changes
    targets=Targets(ttft=5.0, itl=0.1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy on one part of a trace."""

    trace: str
    rate: float
    seed: int
    policy: str
    goodput: float  # share of requests within both targets
    ttft_p50_ms: float
    ttft_p95_ms: float
    ttft_mean_ms: float
    itl_p95_ms: float
    e2e_mean_ms: float
    cached_share: float
    imbalance: float  # busiest replica over the mean
    busy_share: float
    failed: int


MEASURES = (
    "goodput",
    "ttft_p50_ms",
    "ttft_p95_ms",
    "ttft_mean_ms",
    "e2e_mean_ms",
    "cached_share",
    "imbalance",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A policy's means over seeds at one rate, and the spread of the first two that are judged."""

    trace: str
    rate: float
    policy: str
    means: dict[str, float]
    goodput_range: tuple[float, float]
    ttft_p95_range_ms: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is written."""

    environment: Environment
    requests: int
    targets: Targets
    rows: Sequence[Row]
    runs: Sequence[Run]


def part_of(trace: Trace, requests: int, number: int, parts: int) -> Trace:
    """Return the ``number``-th of ``parts`` stretches of a trace, with sessions and jitter."""
    last = max(0, len(trace.arrivals) - requests)
    begin = last * number // max(1, parts - 1) if parts > 1 else 0
    arrivals = trace.arrivals[begin : begin + requests]
    first = arrivals[0].at
    named = tuple(a._replace(at=a.at - first, session=session_of(a)) for a in arrivals)
    return replace(trace, arrivals=named).spread(TICK, seed=number)


def session_of(arrival: Arrival) -> str:
    """Name a conversation; "" if the prompt is too short to tell."""
    pieces = arrival.prompt
    return f"{pieces[1].key:x}" if len(pieces) > 1 else ""


def play(trace: Trace, name: str, rate: float, seed: int, policy: str) -> Run:
    """Run once."""
    config = replace(CONFIG, policy=policy, seed=seed * SEED_STRIDE)
    cluster = build_cluster(config, trace.faster(rate))
    cluster.run()
    figures = figures_of(cluster, trace)
    return run_of(figures, name, rate, seed)


def run_of(figures: Figures, name: str, rate: float, seed: int) -> Run:
    """Take what is compared out of a run's figures."""
    ttft, itl, e2e = figures.ttft_ms, figures.itl_ms, figures.e2e_ms
    assert ttft is not None
    assert itl is not None
    assert e2e is not None
    return Run(
        trace=name,
        rate=rate,
        seed=seed,
        policy=figures.setup.policy,
        goodput=sum(group.within_targets for group in figures.groups) / figures.requests,
        ttft_p50_ms=ttft.p50,
        ttft_p95_ms=ttft.p95,
        ttft_mean_ms=ttft.mean,
        itl_p95_ms=itl.p95,
        e2e_mean_ms=e2e.mean,
        cached_share=figures.cached_share,
        imbalance=figures.imbalance,
        busy_share=figures.busy_share,
        failed=figures.failed + figures.wrong_tokens,
    )


def row_of(runs: Sequence[Run]) -> Row:
    """Return the means of one policy's runs at one rate."""
    first = runs[0]
    goodputs = [run.goodput for run in runs]
    p95s = [run.ttft_p95_ms for run in runs]
    columns = {
        "goodput": goodputs,
        "ttft_p50_ms": [run.ttft_p50_ms for run in runs],
        "ttft_p95_ms": p95s,
        "ttft_mean_ms": [run.ttft_mean_ms for run in runs],
        "e2e_mean_ms": [run.e2e_mean_ms for run in runs],
        "cached_share": [run.cached_share for run in runs],
        "imbalance": [run.imbalance for run in runs],
    }
    return Row(
        trace=first.trace,
        rate=first.rate,
        policy=first.policy,
        means={name: mean(columns[name]) for name in MEASURES},
        goodput_range=(min(goodputs), max(goodputs)),
        ttft_p95_range_ms=(min(p95s), max(p95s)),
    )


def table_of(rows: Sequence[Row]) -> str:
    """Return the rows of one trace and rate as a table in markdown, the best goodput first."""
    lines = [
        "| policy | goodput | (seeds) | TTFT p50 | p95 | (seeds) | mean | E2E mean | cached "
        "| busiest / mean |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row.means["goodput"]):
        m, (low, high), (early, late) = row.means, row.goodput_range, row.ttft_p95_range_ms
        mark = "**" if row.policy == CONFIG.policy else ""
        lines.append(
            f"| {mark}{row.policy}{mark} | {m['goodput']:.1%} | {low:.0%} to {high:.0%} "
            f"| {m['ttft_p50_ms']:,.0f} ms | {m['ttft_p95_ms']:,.0f} ms "
            f"| {early:,.0f} to {late:,.0f} | {m['ttft_mean_ms']:,.0f} ms "
            f"| {m['e2e_mean_ms'] / 1000:,.1f} s | {m['cached_share']:.1%} "
            f"| {m['imbalance']:.2f} |"
        )
    return "\n".join(lines)


def compare(args: argparse.Namespace) -> list[Run]:
    """Play everything; prints a line for each run."""
    runs: list[Run] = []
    trace = open_trace(find_trace(args.data, FILES[args.trace]), seed=0)
    gc.freeze()
    parts = [part_of(trace, args.requests, seed, args.seeds) for seed in range(args.seeds)]
    for rate, (seed, part), policy in product(args.rates, enumerate(parts), args.policies):
        run = play(part, args.trace, rate, seed, policy)
        runs.append(run)
        print(
            f"x {rate:g}  seed {seed}  {policy:<20} goodput {run.goodput:6.1%}  TTFT p50 "
            f"{run.ttft_p50_ms:7,.0f}  p95 {run.ttft_p95_ms:8,.0f} ms  cached "
            f"{run.cached_share:5.1%}{f'  {run.failed} FAILED' if run.failed else ''}",
            flush=True,
        )
    return runs


def policies_from(text: str) -> list[str]:
    """Read names; an unknown one is told before a long run."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        build_policy(name)
    return names


def main() -> int:
    """Play, print, write; exit 1 if a request failed."""
    parser = argparse.ArgumentParser(description="balancer policies on public traces, in the twin")
    parser.add_argument("--data", type=Path, required=True, help="folder with the traces")
    parser.add_argument("--trace", choices=sorted(FILES), default="conversation")
    parser.add_argument("--policies", type=policies_from, default=list(POLICIES), metavar="A,B,..")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.5, 2.0])
    parser.add_argument("--requests", type=int, default=700, help="in each part (700)")
    parser.add_argument("--seeds", type=int, default=3, help="parts of the trace (3)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    args = parser.parse_args()
    runs = compare(args)
    keys = list(product(args.rates, args.policies))
    rows = [row_of([r for r in runs if (r.rate, r.policy) == key]) for key in keys]
    tables = "\n\n".join(
        f"{args.trace}, x {rate:g}\n\n{table_of([row for row in rows if row.rate == rate])}"
        for rate in args.rates
    )
    print(f"\n{tables}")
    if args.markdown is not None:
        args.markdown.write_text(f"{tables}\n")
    if args.json is not None:
        words = ["python", "benchmarks/twin/policies.py", "--data", "DIR", "--trace", args.trace]
        words += ["--rates", *map(str, args.rates), "--requests", str(args.requests)]
        words += ["--seeds", str(args.seeds)]
        result = Result(
            environment=describe_environment(words),
            requests=args.requests,
            targets=CONFIG.targets,
            rows=rows,
            runs=runs,
        )
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 1 if any(run.failed for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
