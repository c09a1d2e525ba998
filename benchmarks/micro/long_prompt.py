"""What one very long prompt costs the scheduler in any one step.

A prompt of 131,072 tokens arrives with its block chain, alone or beside sequences that decode,
fresh or already in the prefix cache. Timed, in processor time of the thread, is every event on
its way: Submit, the end of each step with the plan of the next, its own end, and the ticks between
them, with which its blocks are taken and given back by slices. A run is
repeated and the least time of each event counts: all repeats do the same, what differs is noise.

    python benchmarks/micro/long_prompt.py [--json FILE] [--tokens 131072] [--profile]

Exits 1 if an event takes more than --bar milliseconds. ``--profile`` prints where time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepping import Requests, TimedCore, describe_run, simulated_spec

from headrace.core.scheduler.config import SchedulerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.types import Request

BLOCK_SIZE = 16
BUDGET = 512
OUTPUT = 8
BESIDE_TOKENS, BESIDE_OUTPUT = 64, 100_000
BAR_MS = 1.0
MAX_STEPS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Milliseconds of events. ``step_*``: a step's end and the next plan."""

    tokens: int
    beside: int  # sequences that decode
    cached: bool  # all but the end lies in the prefix cache
    steps: int
    submit_ms: float
    step_median_ms: float
    step_max_ms: float
    slowest_step: int
    end_ms: float  # its last token: its blocks are given back
    slices: int  # ticks between all of these
    slice_max_ms: float
    without_median_ms: float  # the median step before it came


class Way:
    """One prompt's way through a fresh core."""

    def __init__(self, tokens: int, beside: int) -> None:
        self.tokens = tokens
        self.beside = beside
        blocks = 2 * (tokens // BLOCK_SIZE) + beside * (BESIDE_OUTPUT // BLOCK_SIZE // 50)
        self.timed = TimedCore(
            simulated_spec(num_blocks=blocks, block_size=BLOCK_SIZE, max_model_len=2 * tokens),
            SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=BUDGET + beside),
        )
        self.requests = Requests(BLOCK_SIZE)
        self.before: list[float] = []
        self._settle()

    def _settle(self) -> None:
        """Let those beside decode for a while."""
        for _ in range(self.beside):
            self.timed.submit(self.requests.make(BESIDE_TOKENS, BESIDE_OUTPUT))
        if self.beside:
            self.before = [self.timed.step()[1] for _ in range(40)][-20:]

    def go(self, request: Request) -> tuple[list[float], list[float]]:
        """Submit it and step until it has ended: milliseconds of events, and of slices."""
        timed = self.timed
        gc.collect()
        gc.freeze()
        times = [timed.submit(request)]
        slices = timed.go_on()
        for _ in range(MAX_STEPS):
            times.append(timed.step()[1])
            slices += timed.go_on()
            if request.id in timed.ended:
                return times, slices
        raise SystemExit(f"not at its end within {MAX_STEPS} steps")


def walk(tokens: int, beside: int, *, cached: bool) -> tuple[list[float], list[float], float]:
    """Return the times of one run, of its slices, and the median step before."""
    way = Way(tokens, beside)
    first = way.requests.make(tokens, OUTPUT)
    times = way.go(first)
    if cached:
        times = way.go(way.requests.make(tokens + BLOCK_SIZE, OUTPUT, prefix=first.prompt))
    return *times, statistics.median(way.before or [0.0])


def measure(tokens: int, beside: int, repeats: int, *, cached: bool) -> Figure:
    """Repeat a run; take the least of each event."""
    runs = [walk(tokens, beside, cached=cached) for _ in range(repeats)]
    submit, *steps, end = _least(times for times, _, _ in runs)
    slices = _least(slices for _, slices, _ in runs)
    return Figure(
        tokens=tokens,
        beside=beside,
        cached=cached,
        steps=len(steps),
        submit_ms=round(submit, 4),
        step_median_ms=round(statistics.median(steps), 4),
        step_max_ms=round(max(steps), 4),
        slowest_step=steps.index(max(steps)),
        end_ms=round(end, 4),
        slices=len(slices),
        slice_max_ms=round(max(slices, default=0.0), 4),
        without_median_ms=round(min(before for _, _, before in runs), 4),
    )


def _least(runs: Iterable[list[float]]) -> list[float]:
    """Return the least time of each event."""
    return [min(times) for times in zip(*runs, strict=True)]


def show(figure: Figure) -> str:
    cached = "cached" if figure.cached else "fresh"
    return (
        f"{figure.tokens} tokens, {cached}, beside {figure.beside:3}: "
        f"submit {figure.submit_ms:.3f} ms; {figure.steps} steps, median "
        f"{figure.step_median_ms:.3f}, max {figure.step_max_ms:.3f} (step {figure.slowest_step}); "
        f"end {figure.end_ms:.3f}; {figure.slices} slices, max {figure.slice_max_ms:.3f}; "
        f"median before {figure.without_median_ms:.3f}"
    )


def profile(tokens: int) -> None:
    """Print where a fresh prompt's time goes, most of it first."""
    way = Way(tokens, 0)
    request = way.requests.make(tokens, OUTPUT)
    profiler = cProfile.Profile()
    handle = way.timed.core.handle
    profiler.enable()
    way.go(request)
    profiler.disable()
    print(f"\nof {handle.__qualname__} and the simulated executor, own time first:")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def main() -> int:
    """Measure, print, write; exit code 1 if an event takes too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--beside", type=int, nargs="+", default=[0, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bar", type=float, default=BAR_MS, help="milliseconds")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    for beside in arguments.beside:
        for cached in (False, True):
            figures.append(measure(arguments.tokens, beside, arguments.repeats, cached=cached))
            print(show(figures[-1]), flush=True)
    if arguments.profile:
        profile(arguments.tokens)
    if arguments.json:
        document = {**describe_run(sys.argv), "figures": [asdict(figure) for figure in figures]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    worst = max(max(f.submit_ms, f.step_max_ms, f.end_ms, f.slice_max_ms) for f in figures)
    print(f"worst event {worst:.3f} ms (bar {arguments.bar:g} ms)")
    return 1 if worst > arguments.bar else 0


if __name__ == "__main__":
    sys.exit(main())
