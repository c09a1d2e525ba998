"""What the Router machine costs: a request from its arrival to its dispatch, and a step's tokens.

Everything that ``handle`` does is in it, and ``next_wakeup`` as drivers call it; making the events
is not. Requests have 4,096 tokens in 256 blocks, of which replicas hold nothing, so that every key
is new; tokens come for 256 streams at once, plain ones and ones that moved (whose outputs are
renamed).

    python benchmarks/micro/router_cost.py [--json FILE] [--replicas 3 64]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.balancer.predicted_ttft import PredictedTtft
from headrace.core.router.events import (
    ClientGone,
    KvListed,
    Outputs,
    ReplicaBeat,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
    RouterEvent,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.types import Output, ReplicaId, Request, RequestId

NUM_BLOCKS = 256
BLOCK_SIZE = 16
NUM_STREAMS = 256
OUTPUTS_BAR_US = 150.0
"""Median for the tokens of 256 streams."""

FACTS = ReplicaFacts(
    block_size=BLOCK_SIZE, num_blocks=65_536, max_num_seqs=256, max_num_batched_tokens=2048
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Microseconds of one event."""

    what: str
    replicas: int
    calls: int
    median_us: float
    p95_us: float


def build_router(num_replicas: int) -> Router:
    """Return one whose replicas beat and tell of their blocks."""
    router = Router(RouterLimits(max_waiting=2 * NUM_STREAMS), PredictedTtft())
    for index in range(num_replicas):
        replica = ReplicaId(f"r{index}")
        router.handle(ReplicaReady(replica, FACTS), 0.0)
        router.handle(ReplicaBeat(replica), 0.0)
        router.handle(KvListed(replica, 1, ()), 0.0)
    return router


def seconds_of(router: Router, event: RouterEvent, now: float) -> float:
    """Handle an event; return how long it took."""
    start = time.perf_counter()
    router.handle(event, now)
    router.next_wakeup()
    return time.perf_counter() - start


def figure(what: str, num_replicas: int, seconds: list[float]) -> Figure:
    """Return the distribution."""
    seconds = sorted(seconds)
    return Figure(
        what=what,
        replicas=num_replicas,
        calls=len(seconds),
        median_us=round(1e6 * statistics.median(seconds), 1),
        p95_us=round(1e6 * seconds[int(0.95 * len(seconds))], 1),
    )


def measure_arrivals(num_replicas: int, num_calls: int = 2000) -> Figure:
    """Time RequestArrived to Dispatch."""
    router, draw = build_router(num_replicas), random.Random(1)
    tokens = tuple(range(NUM_BLOCKS * BLOCK_SIZE))
    seconds = []
    for index in range(num_calls):
        chain = tuple(draw.randbytes(32) for _ in range(NUM_BLOCKS))
        name = RequestId(f"q{index}")
        request = Request(id=name, prompt=tokens, max_tokens=9, chain=chain)
        seconds.append(seconds_of(router, RequestArrived((request,)), 0.0))
        router.handle(ClientGone((name,)), 0.0)
    return figure("request, arrival to dispatch", num_replicas, seconds)


def measure_outputs(num_replicas: int, *, moved: bool, num_calls: int = 1000) -> Figure:
    """Time a step's tokens of 256 streams at one replica."""
    router, home = build_router(num_replicas), ReplicaId("home")
    names = [RequestId(f"q{index}") for index in range(NUM_STREAMS)]
    for index in range(num_replicas):
        router.handle(ReplicaLost(ReplicaId(f"r{index}"), "to make room"), 0.0)
    router.handle(ReplicaReady(home, FACTS), 0.0)
    for name in names:
        request = Request(id=name, prompt=(1, 2), max_tokens=1 << 30)
        router.handle(RequestArrived((request,)), 0.0)
    if moved:
        router.handle(ReplicaReady(home, FACTS), 0.0)
    for index in range(num_replicas - 1):
        router.handle(ReplicaReady(ReplicaId(f"r{index}"), FACTS), 0.0)
    seconds = []
    for step in range(num_calls):
        outputs = tuple(
            Output(RequestId(f"{name}~2") if moved else name, (step,), None, 0) for name in names
        )
        seconds.append(seconds_of(router, Outputs(home, outputs), 0.0))
    return figure(f"256 outputs{', moved streams' if moved else ''}", num_replicas, seconds)


def commit() -> str:
    """Return the commit that is checked out, with ``+`` if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def main() -> int:
    """Measure, print, and compare with the bar; exit code 1 if it is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[3, 64])
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    figures = []
    for num_replicas in arguments.replicas:
        figures.append(measure_arrivals(num_replicas))
        figures += [measure_outputs(num_replicas, moved=moved) for moved in (False, True)]
    for each in figures:
        print(
            f"{each.replicas:3} replicas, {each.what:30} "
            f"{each.median_us:7.1f} us median {each.p95_us:7.1f} us p95"
        )
    missed = any("outputs" in e.what and e.median_us > OUTPUTS_BAR_US for e in figures)
    print(f"256 outputs: bar {OUTPUTS_BAR_US:.0f} us, {'MISSED' if missed else 'held'}")
    if arguments.json:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.processor() or platform.machine()}, {platform.platform()}",
            "python": platform.python_version(),
            "outputs_bar_us": OUTPUTS_BAR_US,
            "figures": [asdict(each) for each in figures],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
