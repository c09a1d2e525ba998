"""How long steps of the OpenVINO executor take, over ways to run a model, side by side.

    python benchmarks/micro/executor_speed.py MODEL.gguf CONFIG [CONFIG ..] [--rounds 5] [--json F]

A CONFIG is fields of OpenVinoOptions, ``precision=bf16,kv_precision=u8,num_threads=1``; ``auto``
is none. Configurations take turns within each round, so that what else the machine does hits
all of them; with one thread, the CPU time of the process is nearly free of such noise.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan
from headrace.executor.openvino.build import build_openvino_executor
from headrace.executor.openvino.cpu import Precision
from headrace.executor.openvino.options import KvPrecision, OpenVinoOptions
from headrace.executor.openvino.repack import GATE_UP, QKV, Stack
from headrace.executor.openvino.weights import WeightForm
from headrace.types import BlockId, SamplingParams, SequenceId, StepId

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT = 256
SHAPES = ("d1", "d4", "d16", "d32", "d64", "p128", "p512", "m16+256")
"""d: decodes at CONTEXT; p: a prompt; m: decodes and a chunk of a prompt in one step."""


def _stacks(text: str) -> tuple[Stack, ...]:
    return tuple(stack for stack in (QKV, GATE_UP) if stack.name in text.split("+"))


def _forms(text: str) -> tuple[WeightForm, ...]:
    return tuple(map(WeightForm, text.split("+")))


def _flag(text: str) -> bool:
    return text == "1"


_FIELDS: dict[str, Callable[[str], object]] = {
    "precision": Precision,
    "kv_precision": KvPrecision,
    "weight_forms": _forms,
    "stacks": _stacks,
    "pads_steps": _flag,
    "profile": _flag,
}


def options_of(config: str) -> OpenVinoOptions:
    """Read ``name=value,name=value``."""
    values: dict[str, Any] = {}
    names = {field.name for field in fields(OpenVinoOptions)}
    for item in config.split(","):
        name, _, text = item.partition("=")
        if name in names:
            values[name] = _FIELDS.get(name, int)(text)
        elif item != "auto":
            raise SystemExit(f"{item!r}: a CONFIG has name=value with names of {sorted(names)}")
    return OpenVinoOptions(**{"kv_tokens": 32_768, **values})


class Bench:
    """One configuration and the times of its steps."""

    def __init__(self, path: Path, cache: Path, config: str) -> None:
        began = time.perf_counter()
        self.config = config
        self.executor = build_openvino_executor(path, cache, options_of(config))
        self.ready_s = time.perf_counter() - began
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, list[float]] = defaultdict(list)
        self._rng = np.random.default_rng(0)
        greedy = SamplingParams(temperature=0)
        starts = tuple(
            SequenceStart(
                sequence=SequenceId(i),
                sampling=greedy,
                prompt=(),
                output=(),
                min_tokens=0,
                stop_token_ids=(),
            )
            for i in range(128)
        )
        self.executor.execute(StepPlan(step_id=StepId(0), rows=(), starts=starts))
        self._fill_blocks()

    def _fill_blocks(self) -> None:
        """Give every block keys and values of real tokens (untouched memory reads as one page)."""
        prompt = self._row(0, 0, CONTEXT)
        self.executor.execute(StepPlan(step_id=StepId(0), rows=(prompt,)))
        content = self.executor.read_blocks(prompt.blocks)
        size, num_blocks = len(prompt.blocks), self.executor.spec.num_blocks
        for first in range(size, num_blocks - size + 1, size):
            self.executor.write_blocks([BlockId(first + i) for i in range(size)], content)

    def run(self, shape: str, repeat: int) -> None:
        """Time ``repeat`` steps of a shape, after one that is not counted."""
        plan = StepPlan(step_id=StepId(0), rows=self._rows(shape))
        self.executor.execute(plan)
        for _ in range(repeat):
            cpu, wall = time.process_time(), time.perf_counter()
            self.executor.execute(plan)
            self.wall[shape].append(time.perf_counter() - wall)
            self.cpu[shape].append(time.process_time() - cpu)

    def _rows(self, shape: str) -> tuple[Row, ...]:
        decodes, _, prefill = shape[1:].partition("+")
        if shape[0] == "p":
            return (self._row(0, 0, int(decodes)),)
        rows = [self._row(i, CONTEXT, 1) for i in range(int(decodes))]
        if prefill:
            rows.append(self._row(len(rows), 0, int(prefill)))
        return tuple(rows)

    def _row(self, index: int, start: int, num_tokens: int) -> Row:
        tokens = tuple(self._rng.integers(100, 40_000, num_tokens).tolist())
        size = self.executor.spec.block_size
        num_blocks = -(-(start + num_tokens) // size)
        first = index * (CONTEXT // size + 1)
        blocks = tuple(BlockId(first + i) for i in range(num_blocks))
        return Row(SequenceId(index), start, tokens, blocks, samples=True)


def profile(bench: Bench, shape: str) -> None:
    """Print where OpenVINO spent its time, for a configuration with profile=1."""
    bench.run(shape, 20)
    spent: dict[str, float] = defaultdict(float)
    for entry in bench.executor.profile():
        spent[f"{entry.kind} {entry.kernel}"] += entry.microseconds
    for name, microseconds in sorted(spent.items(), key=lambda pair: -pair[1])[:12]:
        print(f"{microseconds / 1e3:9.3f} ms  {name}")


def resident_mb() -> int:
    """Return this process's resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) >> 10
    return 0


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/headrace-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shapes = arguments.shapes.split(",")
    benches = []
    for config in arguments.configs:
        bench = Bench(arguments.model, arguments.cache, config)
        print(f"{config}: ready in {bench.ready_s:.1f} s, {resident_mb()} MB", flush=True)
        benches.append(bench)
    if len(benches) == 1 and options_of(benches[0].config).profile:
        for shape in shapes:
            print(shape)
            profile(benches[0], shape)
    for _ in range(arguments.rounds):
        for shape in shapes:
            for bench in benches:
                bench.run(shape, arguments.repeat)
    report(benches, shapes)
    if arguments.json:
        arguments.json.write_text(json.dumps(results(benches), indent=1) + "\n")


def report(benches: list[Bench], shapes: list[str]) -> None:
    """Print median and best wall time and best CPU time, in ms."""
    print("wall ms median (best) | cpu ms best")
    for bench in benches:
        print(bench.config)
        for shape in shapes:
            wall, cpu = bench.wall[shape], bench.cpu[shape]
            print(
                f"  {shape:8} {statistics.median(wall) * 1e3:8.2f} ({min(wall) * 1e3:8.2f})"
                f" | {min(cpu) * 1e3:8.2f}"
            )


def machine() -> dict[str, str]:
    """Return what a figure must be read with: command, date, processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    amx = ", AMX" if "amx_tile" in next(line for line in lines if "flags" in line) else ""
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{len(names)} x {names[0]}{amx}, {platform.system()}",
    }


def results(benches: list[Bench]) -> dict[str, object]:
    """Return the figures with the machine they were taken on."""
    return {
        **machine(),
        "context": CONTEXT,
        "steps": {
            bench.config: {
                shape: {
                    "median_ms": round(statistics.median(times) * 1e3, 2),
                    "best_ms": round(min(times) * 1e3, 2),
                    "best_cpu_ms": round(min(bench.cpu[shape]) * 1e3, 2),
                }
                for shape, times in bench.wall.items()
            }
            for bench in benches
        },
    }


if __name__ == "__main__":
    main()
