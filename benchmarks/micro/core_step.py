"""Python time per step outside the executor, and how it grows with what runs and waits.

What is timed is all that EngineCore does between the end of one step and the start of the next:
``handle(StepDone)``, with its consequences for every sequence, the plan of the next step and the
effects; in processor time of the thread. Scenes:

    decode   all seats taken, every sequence decodes, and nobody waits
    waiting  the same, while many wait: of mixed tenants, classes, lengths, deadlines
    churn    sequences end and others are admitted all the time, while many wait
    blocked  seats are free, but no blocks: many wait, and none fits
    sharing  all who wait share a prefix that a running prompt is computing

    python benchmarks/micro/core_step.py [--json FILE] [--sequences 32 256 1024] [--steps 400]
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from stepping import Requests, TimedCore, describe_run, simulated_spec

from headrace.core.scheduler.config import SchedulerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.core.scheduler.plan import StepPlan

BLOCK_SIZE = 32
PROMPT_TOKENS = 128
WAITING_LENGTHS = (64, 1000, 128, 70, 250, 96, 400, 65)
PREFIX_TOKENS = 4096
BARS_MS = {32: 0.5, 256: 1.5}
"""Median per step of scene ``decode``, from the list of what must be shown."""

ROOMY = 1 << 18  # blocks: more than any scene takes
STAYS = 1 << 15  # max_tokens of sequences that must not end
CHURN_SETUP_STEPS = 200
NO_GROWTH = 24  # steps of scene ``blocked``, in which no sequence begins a block
MAX_SETUP_STEPS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Milliseconds per step with ``sequences`` running and ``waiting`` in the queue."""

    scene: str
    sequences: int
    waiting: int
    steps_in_flight: int
    steps: int
    median_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    submit_median_ms: float  # of those that wait
    submit_max_ms: float
    collection_ms: float  # one full garbage collection with all that waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large a scene is."""

    sequences: int
    waiting: int = 0
    steps_in_flight: int = 1
    steps: int = 400


class Scene:
    """A core with ``sequences`` running; knows what waiting ones took to submit."""

    def __init__(
        self, scale: Scale, *, num_blocks: int = ROOMY, seats: int = 0, budget: int = 0
    ) -> None:
        spec = simulated_spec(num_blocks=num_blocks, block_size=BLOCK_SIZE, max_model_len=2 * STAYS)
        config = SchedulerConfig(
            max_num_seqs=seats or scale.sequences,
            max_num_batched_tokens=budget or max(512, 4 * scale.sequences),
            max_num_waiting=1 << 20,
            max_steps_in_flight=scale.steps_in_flight,
        )
        self.scale = scale
        self.requests = Requests(BLOCK_SIZE)
        self.timed = TimedCore(spec, config)
        self.submits: list[float] = []

    def fill(self, lengths: Sequence[int], max_tokens: Sequence[int]) -> None:
        """Let sequences run, until all of them decode."""
        number = self.scale.sequences
        for index in range(number):
            length = lengths[index % len(lengths)]
            self.timed.submit(self.requests.make(length, max_tokens[index % len(max_tokens)]))
        for _ in range(MAX_SETUP_STEPS):
            plan, _ = self.timed.step()
            if len(plan.rows) == number and plan.num_tokens == number:
                return
        raise SystemExit(f"{number} sequences do not come to decode together")

    def queue(self, lengths: Sequence[int], *, prefix: tuple[int, ...] = ()) -> None:
        """Let others wait."""
        for index in range(self.scale.waiting):
            length = len(prefix) + lengths[index % len(lengths)]
            request = self.requests.make(length, 32 + index % 64, prefix=prefix)
            self.submits.append(self.timed.submit(request))

    def run(self, name: str, counts: Callable[[StepPlan], bool]) -> Figure:
        """Time steps; those of plans that ``counts`` is false for are left out."""
        times: list[float] = []
        steps = 0
        begin = time.thread_time()
        gc.collect()
        collection = time.thread_time() - begin
        gc.freeze()  # the figures are of our code; what a collection takes is told apart
        while len(times) < self.scale.steps and steps < 4 * self.scale.steps:
            plan, spent = self.timed.step()
            steps += 1
            if counts(plan):
                times.append(spent)
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        return Figure(
            scene=name,
            sequences=self.scale.sequences,
            waiting=self.scale.waiting,
            steps_in_flight=self.scale.steps_in_flight,
            steps=len(times),
            median_ms=round(statistics.median(times), 4),
            p95_ms=round(cuts[94], 4),
            p99_ms=round(cuts[98], 4),
            max_ms=round(max(times), 4),
            submit_median_ms=round(statistics.median(self.submits or [0.0]), 4),
            submit_max_ms=round(max(self.submits, default=0.0), 4),
            collection_ms=round(1000 * collection, 1),
        )


def decode(scale: Scale) -> Figure:
    """All seats taken."""
    scene = Scene(scale)
    lengths = [PROMPT_TOKENS + i for i in range(BLOCK_SIZE)]  # blocks do not fill all at once
    scene.fill(lengths, [STAYS])
    scene.queue(WAITING_LENGTHS)
    return scene.run(
        "waiting" if scale.waiting else "decode", lambda plan: len(plan.rows) == scale.sequences
    )


def churn(scale: Scale) -> Figure:
    """For each that ends, another comes to the end of the queue."""
    scene = Scene(scale)
    timed, lengths = scene.timed, WAITING_LENGTHS
    scene.queue(lengths)

    def refill(_: StepPlan) -> bool:
        for number, _id in enumerate(timed.ended):
            length = lengths[number % len(lengths)]
            timed.submit(scene.requests.make(length, 32 + number % 64))
        timed.ended.clear()
        return True

    for _ in range(CHURN_SETUP_STEPS):
        refill(timed.step()[0])
    return scene.run("churn", refill)


def blocked(scale: Scale) -> Figure:
    """Each sequence has all blocks that it needs for now, and one more is free for each."""
    length = PROMPT_TOKENS + 1
    number = scale.sequences
    blocks = -(-length // BLOCK_SIZE) + 1
    scene = Scene(
        replace(scale, steps=min(scale.steps, NO_GROWTH)),
        num_blocks=number * blocks + 1,
        seats=number + 64,
        budget=number * length,
    )
    scene.fill([length], [STAYS])
    scene.queue(WAITING_LENGTHS)
    return scene.run("blocked", lambda _: True)


def sharing(scale: Scale) -> Figure:
    """A long prompt is computed, a block a step, and all who wait begin like it.

    A seat and half a block of the step's budget are left for others.
    """
    number = scale.sequences
    steps = min(scale.steps, PREFIX_TOKENS // BLOCK_SIZE - 2)
    budget = number + 3 * BLOCK_SIZE // 2
    scene = Scene(replace(scale, steps=steps), seats=number + 2, budget=budget)
    scene.fill([BLOCK_SIZE // 2], [STAYS])
    long = scene.requests.make(PREFIX_TOKENS, 64)
    scene.timed.submit(long)
    scene.queue((64, 200, 100), prefix=long.prompt)
    return scene.run("sharing", lambda plan: plan.num_tokens > number)


SCENES: dict[str, Callable[[Scale], Figure]] = {
    "waiting": decode,
    "churn": churn,
    "blocked": blocked,
    "sharing": sharing,
}


def growth(figures: Sequence[Figure]) -> list[str]:
    """Say how a scene's median grows between numbers of sequences, beside n log n."""
    lines = []
    for few, many in pairwise(figures):
        ratio = many.median_ms / few.median_ms
        bound = n_log_n(many.sequences) / n_log_n(few.sequences)
        word = "within" if ratio <= bound else "BEYOND"
        lines.append(
            f"  {few.scene}: x{ratio:.1f} from {few.sequences} to {many.sequences}, "
            f"{word} n log n (x{bound:.1f})"
        )
    return lines


def n_log_n(number: int) -> float:
    return number * math.log2(max(2, number))


def show(figure: Figure) -> str:
    bar = BARS_MS.get(figure.sequences) if figure.scene == "decode" else None
    waiting = f", {figure.waiting} wait ({figure.scene})" if figure.waiting else ""
    return (
        f"{figure.sequences:4} sequences, {figure.steps_in_flight} in flight{waiting}: "
        f"median {figure.median_ms:.3f} ms, p95 {figure.p95_ms:.3f}, p99 {figure.p99_ms:.3f}, "
        f"max {figure.max_ms:.3f}"
        + (
            f"; submit {figure.submit_median_ms:.3f}, collection {figure.collection_ms:.0f}"
            if figure.waiting
            else ""
        )
        + (f" (bar {bar} ms)" if bar else "")
    )


def measure(args: argparse.Namespace) -> list[Figure]:
    """Run every scene at every size; print as it goes."""
    figures: list[Figure] = []

    def take(figure: Figure) -> Figure:
        print(show(figure), flush=True)
        figures.append(figure)
        return figure

    for number in args.sequences:
        for in_flight in (1, 2):
            take(decode(Scale(sequences=number, steps_in_flight=in_flight, steps=args.steps)))
    for name in args.scenes if args.waiting else ():
        sizes = [
            Scale(sequences=number, waiting=args.waiting, steps=args.steps)
            for number in args.sequences
        ]
        print("\n".join(growth([take(SCENES[name](scale)) for scale in sizes])))
    return figures


def main() -> int:
    """Measure, print, write; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sequences", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    figures = measure(arguments)
    if arguments.json:
        document = {**describe_run(sys.argv), "figures": [asdict(figure) for figure in figures]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    missed = [
        figure
        for figure in figures
        if figure.scene == "decode" and figure.median_ms > BARS_MS.get(figure.sequences, math.inf)
    ]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
