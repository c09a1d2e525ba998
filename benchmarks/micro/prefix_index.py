"""Time to find a prompt's blocks among those of all replicas, and to choose one of these.

A prompt of 4,096 tokens, a million blocks held by 64 replicas, block keys ready, in two forms:

- **exact**: 256 blocks of 16 tokens, named by digests of their tokens (our own replicas, which tell
  of every change);
- **approximate**: 32 chunks of 512 bytes, named by digests of the text (foreign replicas, of
  which only what was sent there is known).

Each prompt is whole at one replica, and its beginning, of any length, at four others. Prompts
rotate over all of the index, so that its memory is as cold as it would be; a prompt's keys are made
of its chain just before, untimed, as the Router does (and once made all beforehand: then they are
cold too). Timed apart: the look-up, and with it the policy's choice among 64 replicas of different
load. Beside it the chain's own time: what it takes to make those keys of tokens, or of text.
``cpu_us`` is processor time of a whole pass, less that of one that only makes the keys. What a
whole Router costs is in router_cost.py.

    python benchmarks/micro/prefix_index.py [--json FILE] [--replicas 64] [--blocks 1000000]
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from headrace.core.balancer.candidates import Candidates, takers_of
from headrace.core.balancer.policy import ReplicaFacts, ReplicaView
from headrace.core.balancer.predicted_ttft import PredictedTtft
from headrace.core.balancer.prefix_index import PrefixIndex
from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.prefixes import LOOKS, LOOKS_ASSUMED
from headrace.core.router.requests import keys_of
from headrace.server.gateway.foreign.naming import CHUNK_BYTES, CHUNK_TOKENS, name_chunks
from headrace.types import BlockKey, ReplicaId, Request, RequestId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Given = TypeVar("Given")
    Source = TypeVar("Source")

PROMPT_TOKENS = 4096
BLOCK_SIZE = 16
CHAIN_CALLS = 1000


COLD = "look-up and choice, cold keys"
"""What the bar is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One kind of index. ``looks`` into it are as many as the Router allows."""

    name: str
    block_size: int
    looks: int
    bar_us: float  # of the median of look-up and choice together

    @property
    def blocks(self) -> int:
        """Of one prompt."""
        return PROMPT_TOKENS // self.block_size


FORMS = (
    Form(name="exact", block_size=BLOCK_SIZE, looks=LOOKS, bar_us=40.0),
    Form(name="approximate", block_size=CHUNK_TOKENS, looks=LOOKS_ASSUMED, bar_us=15.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Microseconds."""

    index: str
    what: str
    calls: int
    median_us: float
    p95_us: float
    cpu_us: float  # mean


class Pool:
    """Prompts of random digests, each held by some replicas to some depth."""

    def __init__(self, form: Form, num_replicas: int, num_blocks: int) -> None:
        self.replicas = [ReplicaId(f"r{index}") for index in range(num_replicas)]
        self.index = PrefixIndex()
        self.chains: list[tuple[bytes, ...]] = []
        for replica in self.replicas:
            self.index.add(replica)
        draw, length = random.Random(5), form.blocks
        for _ in range(num_blocks // length):
            self.chains.append(tuple(draw.randbytes(32) for _ in range(length)))
        before = resident_bytes()
        for chain in self.chains:
            keys = keys_of(chain)
            for replica in draw.sample(self.replicas, min(4, num_replicas)):
                self.index.store(replica, keys[: draw.randint(1, length)])
            self.index.store(draw.choice(self.replicas), keys)
        self.index_bytes = resident_bytes() - before

    def views(self) -> dict[ReplicaId, ReplicaView]:
        """Return replicas with different loads."""
        draw = random.Random(6)
        views = {}
        for replica in self.replicas:
            view = views[replica] = ReplicaView(replica=replica, progress_at=0.0, facts=facts())
            view.decoding = draw.randint(0, 30)
            view.outstanding = view.decoding + draw.randint(0, 4)
            view.prefill_tokens = draw.randint(0, 8000)
            view.context_tokens = 1000 * view.outstanding
        return views


def facts() -> ReplicaFacts:
    """Return those of a replica with room for a million tokens."""
    return ReplicaFacts(
        block_size=BLOCK_SIZE, num_blocks=65_536, max_num_seqs=256, max_num_batched_tokens=2048
    )


def figure(index: str, what: str, nanoseconds: list[int], cpu_seconds: float) -> Figure:
    """Return the distribution."""
    times = sorted(each / 1000 for each in nanoseconds)
    return Figure(
        index=index,
        what=what,
        calls=len(times),
        median_us=round(statistics.median(times), 2),
        p95_us=round(times[int(0.95 * len(times))], 2),
        cpu_us=round(1e6 * cpu_seconds / len(times), 2),
    )


def timed(
    index: str,
    what: str,
    work: Callable[[Given], object],
    make: Callable[[Source], Given],
    sources: Sequence[Source],
) -> Figure:
    """Do ``work`` for what is made of each source: once for each time, once for all CPU time."""
    times = []
    for source in sources:
        given = make(source)
        start = time.perf_counter_ns()
        work(given)
        times.append(time.perf_counter_ns() - start)
    begun = time.process_time()
    for source in sources:
        work(make(source))
    worked = time.process_time()
    for source in sources:
        make(source)
    made = time.process_time() - worked
    return figure(index, what, times, worked - begun - made)


def measure_index(form: Form, pool: Pool) -> list[Figure]:
    """Time the look-up alone, and with the choice."""
    index, views, policy = pool.index, pool.views(), PredictedTtft()
    takers = takers_of(list(views.values()))
    request = Request(id=RequestId("q"), prompt=(1,), max_tokens=1, chain=(bytes(32),))

    def match(keys: tuple[BlockKey, ...]) -> None:
        index.match(keys, form.looks)

    def choose(keys: tuple[BlockKey, ...]) -> None:
        depths = index.match(keys, form.looks)
        cached = {replica: form.block_size * depth for replica, depth in depths.items()}
        policy.choose(request, PROMPT_TOKENS, Candidates(takers, cached))

    def unknown(chain: tuple[bytes, ...]) -> tuple[BlockKey, ...]:
        return tuple(BlockKey(key + 1) for key in keys_of(chain))

    def same(keys: tuple[BlockKey, ...]) -> tuple[BlockKey, ...]:
        return keys

    ready = [keys_of(chain) for chain in pool.chains]
    gc.collect()
    gc.freeze()  # the million keys of the benchmark itself are no work for the collector
    name, chains = form.name, pool.chains
    return [
        timed(name, "look-up of an unknown prompt", match, unknown, chains),
        timed(name, "look-up", match, keys_of, chains),
        timed(name, COLD, choose, same, ready),
        timed(name, "look-up and choice", choose, keys_of, chains),
    ]


def again(work: Callable[[], object]) -> Callable[[int], object]:
    """Return what does the same, whatever it is given."""

    def call(_: int) -> object:
        return work()

    return call


def measure_chains() -> list[Figure]:
    """Time what makes the keys: of the same prompt again and again, as nothing of it is kept."""
    draw, root = random.Random(7), bytes(32)
    tokens = tuple(draw.randrange(150_000) for _ in range(PROMPT_TOKENS))
    text = draw.randbytes(PROMPT_TOKENS // CHUNK_TOKENS * CHUNK_BYTES)
    of_tokens = partial(prompt_chain, root, tokens, BLOCK_SIZE)
    of_text = partial(name_chunks, root, text)
    figures = []
    for index, what, chain in (
        ("exact", "chain of 4,096 tokens", of_tokens),
        ("approximate", "chain of 16 KiB of text", of_text),
    ):
        digests, calls = chain(), range(CHAIN_CALLS)
        figures += [
            timed(index, what, again(chain), int, calls),
            timed(index, "its keys", again(partial(keys_of, digests)), int, calls),
        ]
    return figures


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def commit() -> str:
    """Return the commit that is checked out, with ``+`` if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def main() -> int:
    """Measure, print, and compare with the bars; exit code 1 if one is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    figures, index_bytes, good = [], 0, True
    for form in FORMS:
        pool = Pool(form, arguments.replicas, arguments.blocks)
        size = pool.index_bytes >> 20
        print(f"{form.name}: {len(pool.index)} keys of {arguments.replicas} replicas, {size} MiB")
        found = measure_index(form, pool)
        gc.unfreeze()
        figures += found
        index_bytes = index_bytes or pool.index_bytes  # the second one gets what the first had
        cold = next(each for each in found if each.what == COLD)
        held = cold.median_us <= form.bar_us
        good = good and held
        print(f"{form.name}: bar {form.bar_us:.0f} us, {'held' if held else 'MISSED'}")
    figures += measure_chains()
    for each in figures:
        print(
            f"{each.index:12} {each.what:30} {each.median_us:8.1f} us median "
            f"{each.p95_us:8.1f} us p95 {each.cpu_us:8.1f} us CPU"
        )
    if arguments.json:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.processor() or platform.machine()}, {platform.platform()}",
            "python": platform.python_version(),
            "replicas": arguments.replicas,
            "blocks": arguments.blocks,
            "bars_us": {form.name: form.bar_us for form in FORMS},
            "index_bytes": index_bytes,
            "figures": [asdict(figure) for figure in figures],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
