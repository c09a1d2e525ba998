"""Python time per step outside the executor, in the steady state of decoding.

What is timed is all that EngineCore does between the end of one step and the start of the next:
``handle(StepDone)``, with its consequences for every sequence, the plan of the next step and the
effects. The simulated executor's own work is not in it.

    python benchmarks/micro/core_step.py [--json FILE] [--sequences 32 256] [--steps 400]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.events import EngineEffect, Execute, StepDone, Submit
from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SimulatedExecutor
from headrace.types import Request, RequestId

if TYPE_CHECKING:
    from headrace.core.scheduler.plan import StepPlan

PROMPT_TOKENS = 128
BLOCK_SIZE = 32
BARS_MS = {32: 0.5, 256: 1.5}
"""Median per step, from the list of what must be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Milliseconds per step with ``sequences`` running."""

    sequences: int
    steps_in_flight: int
    steps: int
    median_ms: float
    p95_ms: float
    max_ms: float


def measure(num_sequences: int, num_steps: int, steps_in_flight: int) -> Figure:
    """Run ``num_steps`` of pure decoding and time them."""
    spec = ExecutorSpec(
        model_identity="simulated",
        vocab_size=49152,
        max_model_len=8192,
        block_size=BLOCK_SIZE,
        num_blocks=num_sequences * ((PROMPT_TOKENS + num_steps) // BLOCK_SIZE + 4),
        block_bytes=0,
    )
    config = SchedulerConfig(
        max_num_seqs=num_sequences,
        max_num_batched_tokens=max(512, num_sequences),
        max_steps_in_flight=steps_in_flight,
    )
    core, executor = build_engine_core(spec, config), SimulatedExecutor(spec)
    plans: list[StepPlan] = []
    now = 0.0

    def handle(event: Submit | StepDone) -> float:
        begin = time.perf_counter()
        effects: list[EngineEffect] = core.handle(event, now)
        seconds = time.perf_counter() - begin
        plans.extend(effect.plan for effect in effects if isinstance(effect, Execute))
        return seconds

    for index in range(num_sequences):
        length = PROMPT_TOKENS + index % BLOCK_SIZE  # blocks do not fill all in the same step
        prompt = tuple((index * 7919 + i * 31) % spec.vocab_size for i in range(length))
        handle(Submit(Request(id=RequestId(f"r{index}"), prompt=prompt, max_tokens=8000)))
    times: list[float] = []
    while len(times) < num_steps:
        plan = plans.pop(0)
        result = executor.execute(plan)
        now += result.seconds
        seconds = handle(StepDone(plan.step_id, result))
        if all(row.num_tokens == 1 for row in plan.rows) and len(plan.rows) == num_sequences:
            times.append(seconds * 1000)
    return Figure(
        sequences=num_sequences,
        steps_in_flight=steps_in_flight,
        steps=num_steps,
        median_ms=round(statistics.median(times), 4),
        p95_ms=round(statistics.quantiles(times, n=20)[-1], 4),
        max_ms=round(max(times), 4),
    )


def commit() -> str:
    """Return the commit that is checked out, with ``+`` if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def main() -> int:
    """Measure, print, write; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sequences", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    missed = False
    for num_sequences in arguments.sequences:
        for steps_in_flight in (1, 2):
            figure = measure(num_sequences, arguments.steps, steps_in_flight)
            figures.append(figure)
            bar = BARS_MS.get(num_sequences)
            missed |= bar is not None and figure.median_ms > bar
            print(
                f"{num_sequences:4} sequences, {steps_in_flight} in flight: "
                f"median {figure.median_ms:.3f} ms, p95 {figure.p95_ms:.3f} ms"
                + (f" (bar {bar} ms)" if bar else "")
            )
    if arguments.json:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.processor() or platform.machine()}, {platform.platform()}",
            "python": platform.python_version(),
            "figures": [asdict(figure) for figure in figures],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
