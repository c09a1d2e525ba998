"""Eviction: LRU, foresight and Belady's optimum on public and generated traces.

    python benchmarks/twin/eviction.py --data DIR [--json FILE] [--markdown FILE] [--limit N]

DIR holds conversation_trace.jsonl(.gz) and synthetic_trace.jsonl(.gz) of
https://github.com/kvcache-ai/Mooncake (FAST25-release). Three comparisons:

cache:     one KVCache serves each request at once, when it arrives, over capacities.
queue:     the conversation trace through the real engine core in virtual time, faster than it can
           serve (``--load`` times its capacity): what waits is known to foresight. Answers are
           cut to ``ANSWER`` tokens for speed; a step takes ``STEP`` + ``TOKEN`` for each token.
sessions:  generated conversations with session ids and think times among one-shot prompts.

Hits are prompt tokens found in the cache; "of the gap" is how much of what LRU leaves to the
optimum is gained. Takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from headrace.bench.environment import Environment, describe_environment
from headrace.core.kvcache.cache import KVCache
from headrace.core.kvcache.eviction.config import EvictionConfig
from headrace.core.kvcache.eviction.marks import Owner
from headrace.core.kvcache.table import BlockTable
from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.events import Execute, ReportLoad, StepDone, Submit
from headrace.core.scheduler.plan import StepResult
from headrace.errors import UsageError
from headrace.executor.base import ExecutorSpec
from headrace.machine import Tick
from headrace.twin.belady import Belady
from headrace.twin.traces.mooncake import BLOCK_TOKENS, PROMPT_KEYS
from headrace.twin.traces.opening import open_trace
from headrace.types import Request, RequestId, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from headrace.core.scheduler.plan import StepPlan
    from headrace.twin.traces.arrivals import Trace

MILLION = 1_000_000
CAPACITIES = tuple(m * MILLION for m in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50))
SESSION_CAPACITIES = tuple(round(m * MILLION) for m in (0.5, 1, 2, 3, 4))
QUEUE_CAPACITIES = (1 * MILLION, 2 * MILLION, 4 * MILLION)
ANSWER = 32
STEP, TOKEN = 0.004, 0.00005  # seconds
NAMES = ("lru", "foresight", "belady")
VOCABULARY = 50_000
ROOT = b"benchmark"


class Prompt(NamedTuple):
    """A request: blocks of BLOCK_TOKENS tokens, the last perhaps in part."""

    at: float
    blocks: tuple[int, ...]
    num_tokens: int
    session: str = ""

    @property
    def chain(self) -> tuple[bytes, ...]:
        """Names of the blocks."""
        return tuple(block.to_bytes(32, "big") for block in self.blocks)


class Row(NamedTuple):
    """Share of prompt tokens found in a cache, by order of eviction."""

    trace: str
    capacity: int
    lru: float
    foresight: float
    belady: float
    seconds: float  # that the three took

    @property
    def gain(self) -> float:
        """Of foresight over LRU, relative."""
        return self.foresight / self.lru - 1 if self.lru else 0.0

    @property
    def of_the_gap(self) -> float | None:
        """Share of what is left to the optimum; None where next to nothing is."""
        gap = self.belady - self.lru
        return (self.foresight - self.lru) / gap if gap > 0.002 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is written."""

    environment: Environment
    rows: Sequence[Row]


def prompts_of(trace: Trace) -> list[Prompt]:
    """Return a Mooncake trace as prompts."""
    return [
        Prompt(
            arrival.at,
            tuple(piece.key - PROMPT_KEYS for piece in arrival.prompt),
            arrival.prompt_tokens,
        )
        for arrival in trace.arrivals
    ]


def serve_at_once(prompts: Sequence[Prompt], capacity: int, name: str) -> float:
    """Return the share of tokens found by one cache without a queue."""
    order = "lru" if name == "belady" else name
    room = capacity // BLOCK_TOKENS
    kv = KVCache(
        num_blocks=room,
        block_size=BLOCK_TOKENS,
        share_partial=False,
        eviction=EvictionConfig(order=order),
        slice_blocks=room,
    )
    belady = Belady(prompt.chain for prompt in prompts) if name == "belady" else None
    if belady is not None:
        kv.evictor.follow(belady)
    found = total = 0
    for place, prompt in enumerate(prompts):
        if belady is not None:
            belady.began(place)
        kv.evictor.advance(prompt.at)
        num_blocks = len(prompt.blocks)
        table = BlockTable([0] * (num_blocks * BLOCK_TOKENS + 1), BLOCK_TOKENS, ROOT)
        table.chain = list(prompt.chain)
        table.owner = Owner(session=prompt.session)
        found += min(kv.take_cached(table) or 0, prompt.num_tokens)
        total += prompt.num_tokens
        if kv.grow(table, num_blocks * BLOCK_TOKENS):
            kv.publish(table, num_blocks * BLOCK_TOKENS)
        kv.release(table, after=None)
    return found / total


class Replay:
    """An engine core in virtual time, on a device whose steps take time by their tokens."""

    def __init__(self, prompts: Sequence[Prompt], capacity: int, name: str) -> None:
        spec = ExecutorSpec(
            model_identity="replay",
            vocab_size=VOCABULARY,
            max_model_len=1 << 20,
            block_size=BLOCK_TOKENS,
            num_blocks=capacity // BLOCK_TOKENS,
            block_bytes=1,
        )
        config = SchedulerConfig(
            max_num_seqs=32,
            max_num_batched_tokens=8192,
            max_num_waiting=1 << 20,
            share_partial=False,
            report_period=3600,
            eviction=EvictionConfig(order="lru" if name == "belady" else name),
        )
        self._core = build_engine_core(spec, config)
        self._prompts = prompts
        self._belady = Belady(prompt.chain for prompt in prompts) if name == "belady" else None
        if self._belady is not None:
            self._core.scheduler.kv.evictor.follow(self._belady)
        self._load: ReportLoad | None = None
        self._plan: StepPlan | None = None

    def run(self, rate: float) -> tuple[float, float]:
        """Return the share of tokens found and how long it took, at ``rate`` times the speed."""
        now, next_place, done_at = 0.0, 0, math.inf
        prompts = self._prompts
        while next_place < len(prompts) or self._plan is not None:
            arrival = prompts[next_place].at / rate if next_place < len(prompts) else math.inf
            if done_at <= arrival:
                now, plan = done_at, self._plan
                self._plan = None
                assert plan is not None
                tokens = tuple(1 if row.samples else None for row in plan.rows)
                event: StepDone | Submit = StepDone(
                    plan.step_id, StepResult(tokens=tokens, seconds=0.0)
                )
            else:
                now, event = arrival, Submit(self._request(next_place))
                next_place += 1
            for effect in self._core.handle(event, now):
                if isinstance(effect, Execute):
                    self._begin(effect.plan)
                    done_at = now + STEP + TOKEN * sum(r.num_tokens for r in effect.plan.rows)
                elif isinstance(effect, ReportLoad):
                    self._load = effect
            if self._plan is None:
                done_at = math.inf
        self._core.handle(Tick(), now)
        assert self._load is not None
        return self._load.cached_tokens_total / self._load.prompt_tokens_total, now

    def _begin(self, plan: StepPlan) -> None:
        self._plan = plan
        if self._belady is not None:
            for start in plan.starts:
                self._belady.began(start.sequence)

    def _request(self, place: int) -> Request:
        prompt = self._prompts[place]
        tokens: list[int] = []
        for block in prompt.blocks:
            tokens += [block % VOCABULARY] * BLOCK_TOKENS
        return Request(
            id=RequestId(str(place)),
            prompt=tuple(tokens[: max(prompt.num_tokens, 1)]),
            max_tokens=ANSWER,
            sampling=SamplingParams(temperature=0),
            chain=prompt.chain,
            chain_root=ROOT,
            session=prompt.session,
        )


def replay(prompts: Sequence[Prompt], capacity: int, load: float) -> Callable[[str], float]:
    """Return what replays at ``load`` times what the engine can serve of this trace with LRU."""
    at_once = [prompt._replace(at=0.0) for prompt in prompts]
    _, least = Replay(at_once, capacity, "lru").run(1.0)
    rate = load * prompts[-1].at / least
    return lambda name: Replay(prompts, capacity, name).run(rate)[0]


def conversations(seed: int, num: int) -> list[Prompt]:
    """Return generated conversations with session ids, and one-shot prompts among them.

    Poisson arrivals, 2/s; 3 of 10 begin a conversation of 6 turns in the mean, with log-normal
    think times (median 30 s, sigma 0.8), the others are never continued.
    """
    rng = random.Random(seed)
    names = iter(range(100, 1 << 30))
    prompts: list[tuple[float, int, Prompt]] = []
    at = 0.0

    def ask(at: float, blocks: list[int], session: str) -> None:
        prompt = Prompt(at, tuple(blocks), len(blocks) * BLOCK_TOKENS, session)
        heapq.heappush(prompts, (at, len(prompts), prompt))

    for number in range(num):
        at += rng.expovariate(2.0)
        if rng.random() >= 0.3:
            size = 1 + int(rng.lognormvariate(2.0, 0.8))
            ask(at, [10, 11, *(next(names) for _ in range(size))], "")
            continue
        blocks, turn_at = [0, 1, 2, 3], at
        while True:
            size = 1 + int(rng.expovariate(1 / 5))
            blocks = [*blocks, *(next(names) for _ in range(size))]
            ask(turn_at, blocks, f"session{number}")
            if rng.random() < 1 / 6:
                break
            turn_at += rng.lognormvariate(math.log(30), 0.8)
    return [heapq.heappop(prompts)[2] for _ in range(len(prompts))]


def compare(trace: str, capacity: int, share: Callable[[str], float]) -> Row:
    """Run the three orders; print a line."""
    begun = time.perf_counter()
    lru, foresight, belady = (share(name) for name in NAMES)
    row = Row(trace, capacity, lru, foresight, belady, round(time.perf_counter() - begun, 1))
    print(to_line(row), flush=True)
    return row


def to_line(row: Row) -> str:
    """Return a row of the table."""
    closed = "" if row.of_the_gap is None else f"{row.of_the_gap:.0%}"
    return (
        f"| {row.trace} | {row.capacity / MILLION:g} | {row.lru:.2%} | {row.foresight:.2%} "
        f"| {row.belady:.2%} | {row.gain:+.1%} | {closed} |"
    )


HEAD = (
    "| trace | million tokens | LRU | foresight | Belady | against LRU | of the gap |\n"
    "|---|---|---|---|---|---|---|"
)


def all_rows(data: Path, limit: int | None, load: float, what: Sequence[str]) -> Iterable[Row]:
    """Run what was asked for."""
    traces = {
        name: prompts_of(open_trace(_find(data, f"{name}_trace.jsonl"), seed=0, limit=limit))
        for name in ("conversation", "synthetic")
    }
    if "sessions" in what:
        talks = conversations(seed=1, num=limit or 4000)
        for capacity in SESSION_CAPACITIES:
            yield compare("sessions", capacity, _at_once(talks, capacity))
    if "queue" in what:
        some = traces["conversation"][:3000]
        for capacity in QUEUE_CAPACITIES:
            yield compare(f"queue at {load:g}", capacity, replay(some, capacity, load))
    if "cache" in what:
        for name, prompts in traces.items():
            for capacity in CAPACITIES:
                yield compare(name, capacity, _at_once(prompts, capacity))


def _at_once(prompts: Sequence[Prompt], capacity: int) -> Callable[[str], float]:
    return lambda name: serve_at_once(prompts, capacity, name)


def _find(folder: Path, name: str) -> str:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return str(path)
    raise UsageError(f"neither {name} nor {name}.gz in the folder of --data")


def main() -> int:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description="orders of eviction")
    parser.add_argument("--data", type=Path, required=True, help="folder with the traces")
    parser.add_argument("--limit", type=int, help="only the first requests")
    parser.add_argument("--load", type=float, default=1.2, help="of the engine's capacity")
    parser.add_argument("--what", nargs="+", default=["sessions", "queue", "cache"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    print(HEAD)
    rows = list(all_rows(args.data, args.limit, args.load, args.what))
    if args.json is not None:
        words = ["python", "benchmarks/twin/eviction.py", "--data", "DIR"]
        result = Result(environment=describe_environment(words), rows=rows)
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    if args.markdown is not None:
        args.markdown.write_text("\n".join([HEAD, *map(to_line, rows)]) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
