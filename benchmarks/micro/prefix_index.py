"""Time to find a prompt's blocks among those of all replicas, and to choose one of these.

A prompt of 4,096 tokens (256 blocks of 16), a million blocks held by 64 replicas, block keys
ready. Prompts rotate over all of the index, so that its memory is as cold as it would be. Timed
apart: the look-up, and with it the policy's choice between 64 loaded replicas. What a whole Router
costs is in router_cost.py.

    python benchmarks/micro/prefix_index.py [--json FILE] [--replicas 64] [--blocks 1000000]
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.balancer.policy import Candidate, ReplicaFacts, ReplicaView
from headrace.core.balancer.predicted_ttft import PredictedTtft
from headrace.core.balancer.prefix_index import PrefixIndex
from headrace.types import BlockKey, ReplicaId, Request, RequestId, block_key

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCKS_PER_PROMPT = 256
BLOCK_SIZE = 16
BAR_US = 40.0
"""Median of look-up and choice together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Microseconds."""

    what: str
    calls: int
    median_us: float
    p95_us: float


class Pool:
    """Prompts of random digests, each held by some replicas to some depth."""

    def __init__(self, num_replicas: int, num_blocks: int) -> None:
        self.replicas = [ReplicaId(f"r{index}") for index in range(num_replicas)]
        self.held: dict[ReplicaId, list[BlockKey]] = {replica: [] for replica in self.replicas}
        self.prompts: list[tuple[bytes, ...]] = []
        draw = random.Random(5)
        for _ in range(num_blocks // BLOCKS_PER_PROMPT):
            chain = tuple(draw.randbytes(32) for _ in range(BLOCKS_PER_PROMPT))
            self.prompts.append(chain)
            keys = [block_key(digest) for digest in chain]
            for replica in draw.sample(self.replicas, 4):
                self.held[replica] += keys[: draw.randint(1, BLOCKS_PER_PROMPT)]
            self.held[draw.choice(self.replicas)] += keys

    def views(self) -> list[ReplicaView]:
        """Return replicas with different loads."""
        draw = random.Random(6)
        views = []
        for replica in self.replicas:
            view = ReplicaView(replica=replica, progress_at=0.0, facts=facts())
            view.decoding = draw.randint(0, 30)
            view.outstanding = view.decoding + draw.randint(0, 4)
            view.prefill_tokens = draw.randint(0, 8000)
            view.context_tokens = 1000 * view.outstanding
            views.append(view)
        return views


def facts() -> ReplicaFacts:
    """Return those of a replica with room for a million tokens."""
    return ReplicaFacts(
        block_size=BLOCK_SIZE, num_blocks=65_536, max_num_seqs=256, max_num_batched_tokens=2048
    )


def timed(what: str, calls: list[Callable[[], object]]) -> Figure:
    """Call each once; return the distribution."""
    times = []
    for call in calls:
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1000)
    times.sort()
    return Figure(
        what=what,
        calls=len(calls),
        median_us=round(statistics.median(times), 2),
        p95_us=round(times[int(0.95 * len(times))], 2),
    )


def measure_index(pool: Pool) -> list[Figure]:
    """Time the look-up alone, and with the choice."""
    index = PrefixIndex()
    for replica in pool.replicas:
        index.add(replica)
        index.store(replica, pool.held[replica])
    print(f"{len(index)} keys of {len(pool.replicas)} replicas")
    views, policy = pool.views(), PredictedTtft()
    length = BLOCKS_PER_PROMPT * BLOCK_SIZE
    prompts = [[block_key(digest) for digest in chain] for chain in pool.prompts]
    request = Request(id=RequestId("q"), prompt=(1,), max_tokens=1, chain=pool.prompts[0])

    def choose(keys: list[BlockKey]) -> None:
        depths = index.match(keys).get
        candidates = [Candidate(view, BLOCK_SIZE * depths(view.replica, 0)) for view in views]
        policy.choose(request, length, candidates)

    unknown = [[BlockKey(key + 1) for key in keys] for keys in prompts]
    return [
        timed("look-up", [partial(index.match, keys) for keys in prompts]),
        timed("look-up of an unknown prompt", [partial(index.match, keys) for keys in unknown]),
        timed("look-up and choice", [partial(choose, keys) for keys in prompts]),
    ]


def commit() -> str:
    """Return the commit that is checked out, with ``+`` if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def main() -> int:
    """Measure, print, and compare with the bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    pool = Pool(arguments.replicas, arguments.blocks)
    gc.collect()
    gc.freeze()  # the million keys of the benchmark itself are no work for the collector
    figures = measure_index(pool)
    for figure in figures:
        print(f"{figure.what:32} {figure.median_us:8.1f} us median {figure.p95_us:8.1f} us p95")
    good = figures[-1].median_us <= BAR_US
    print(f"look-up and choice: bar {BAR_US:.0f} us, {'held' if good else 'MISSED'}")
    if arguments.json:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.processor() or platform.machine()}, {platform.platform()}",
            "python": platform.python_version(),
            "replicas": arguments.replicas,
            "blocks": arguments.blocks,
            "bar_us": BAR_US,
            "figures": [asdict(figure) for figure in figures],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
