"""The twin's cost model against GPUs: measured TTFT and TPOT of vLLM, dense models.

    python benchmarks/twin/validate_costs.py --data DIR [--fit] [--json FILE] [--points N]

DIR holds ``silicon_points.csv.gz``: aiconfigurator's measured points of closed loops of equal
requests (https://github.com/ai-dynamo/aiconfigurator, Apache-2.0). Points are split into two halves
by their ids; constants are fitted on the first (``--fit`` prints them; they go into
core/costs/roofline.py), errors are told for both. Every prediction is a run of the twin: the real
scheduler in a closed loop of the same concurrency.

The fit itself uses a formula for the time per output token in place of the twin, for speed:
a step with ``concurrency`` decodes, and for each token 1/output-length of the other requests'
prompts.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import math
import statistics
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from headrace.bench.environment import Environment, describe_environment
from headrace.core.costs.roofline import FITTED, Deployment, Efficiency, Precision, StepWork
from headrace.errors import ModelTooLarge, UsageError
from headrace.twin.cluster import build_cluster
from headrace.twin.config import Pool, SimulationConfig
from headrace.twin.hardware import GPUS
from headrace.twin.models import MODELS
from headrace.twin.texts import Piece
from headrace.twin.traces.arrivals import Arrival, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

POINTS = "silicon_points.csv.gz"
MODEL_NAMES = {
    "Qwen/Qwen3-32B": "qwen3-32b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
}
GPU_NAMES = {"h100_sxm": "h100-sxm", "h200_sxm": "h200", "b200_sxm": "b200"}
WAVES = 3
"""Requests of a closed loop, in units of its concurrency: the first wave begins all at once."""
MEASURED_WAVES = 10
"""The usual length of measured loops (InferenceMAX: ten prompts for each place). Means of times to
a first token are weighted as if ours were as long."""
OUTPUT_SPREAD = 0.2
"""Answers are this much shorter or longer, evenly: equal ones would keep in step for ever, which
served requests, whose lengths and clients differ, do not."""
BOUNDS = {
    "compute": (0.3, 0.95),
    "bandwidth": (0.4, 0.95),
    "attention_compute": (0.2, 0.75),
    "attention_bandwidth": (0.2, 0.90),
    "link": (0.1, 0.9),
    "step_seconds": (1e-4, 1e-2),
    "sequence_seconds": (1e-6, 3e-4),
    "layer_seconds": (1e-6, 1e-4),
    "all_reduce_seconds": (2e-6, 6e-5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement: a closed loop of equal requests on one replica."""

    id: str
    model: str
    gpu: str
    tp: int
    precision: Precision
    prompt: int
    output: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float

    @property
    def is_for_fit(self) -> bool:
        """Half of the points, by their ids."""
        return hashlib.sha256(self.id.encode()).digest()[0] % 2 == 0

    def deployment(self, efficiency: Efficiency) -> Deployment:
        """Where it was measured."""
        return Deployment(
            model=MODELS[self.model],
            gpu=GPUS[self.gpu],
            tp=self.tp,
            precision=self.precision,
            efficiency=efficiency,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the twin says of a point."""

    point: Point
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors of some predictions; ``bias`` is the median with its sign."""

    points: int
    median: float
    p90: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is written."""

    environment: Environment
    efficiency: Efficiency
    front_ms: float
    """Median of measured less predicted TTFT over the first half: HTTP, tokeniser and queues in
    front of the engine, which the twin does not have."""
    errors: dict[str, Errors]
    predictions: Sequence[Prediction]


def read_points(path: Path) -> list[Point]:
    """Return vLLM's points of dense models that the twin knows."""
    points: dict[str, Point] = {}
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            known = row["model_path"] in MODEL_NAMES and row["system"] in GPU_NAMES
            if not known or row["backend"] != "vllm" or row["mode"] != "agg":
                continue
            if row["precision"] not in ("", "bf16", "fp8"):
                continue
            fp8 = row["precision"] == "fp8"
            points[row["id"]] = Point(
                id=row["id"],
                model=MODEL_NAMES[row["model_path"]],
                gpu=GPU_NAMES[row["system"]],
                tp=int(row["tp_size"]),
                precision=Precision.FP8 if fp8 else Precision.BF16,
                prompt=int(row["isl"]),
                output=int(row["osl"]),
                concurrency=int(row["batch_size"]),
                ttft_ms=float(row["silicon_ttft_ms"]),
                tpot_ms=float(row["silicon_tpot_ms"]),
            )
    return list(points.values())


def formula_tpot(point: Point, efficiency: Efficiency) -> float:
    """Milliseconds for each output token, without running anything."""
    step = point.deployment(efficiency).step_time()
    n, prompt = point.concurrency, point.prompt
    context = n * (prompt + point.output // 2)
    decodes = step.of(StepWork(n, n, 0, 0, context, n))
    pairs = prompt * (prompt + 1) // 2
    with_prompt = step.of(StepWork(n + prompt, n + 1, pairs, prompt, context, n + 1))
    return 1000 * (decodes + (n - 1) / point.output * (with_prompt - decodes))


def fit(points: Sequence[Point]) -> Efficiency:
    """Return constants with the least mean absolute error of log TPOT: a pattern search."""

    def loss(efficiency: Efficiency) -> float:
        ratios = (formula_tpot(p, efficiency) / p.tpot_ms for p in points)
        return statistics.fmean(abs(math.log(ratio)) for ratio in ratios)

    best, value = FITTED, loss(FITTED)
    factor = 1.5
    while factor > 1.01:
        better = min(_neighbours(best, factor), key=loss)
        if loss(better) < value:
            best, value = better, loss(better)
        else:
            factor = math.sqrt(factor)
    return best


def _neighbours(efficiency: Efficiency, factor: float) -> Iterable[Efficiency]:
    for name, (low, high) in BOUNDS.items():
        value = asdict(efficiency)[name]
        for moved in (value * factor, value / factor):
            yield replace(efficiency, **{name: min(high, max(low, moved))})


def predict(point: Point, efficiency: Efficiency) -> Prediction:
    """Run the twin in a closed loop like the measured one. Raises ModelTooLarge."""
    n = point.concurrency
    low, high = (round(point.output * (1 + side * OUTPUT_SPREAD)) for side in (-1, 1))
    outputs = np.random.default_rng(0).integers(low, high, WAVES * n, endpoint=True).tolist()
    arrivals = tuple(
        Arrival(0.0, (Piece(1 << 48 | i, 0, point.prompt),), length, i)
        for i, length in enumerate(outputs)
    )
    config = SimulationConfig(
        deployment=point.deployment(efficiency),
        pool=Pool(),
        policy="round_robin",
        concurrency=n,
        request_timeout=1e6,
    )
    cluster = build_cluster(config, Trace(name=point.id, arrivals=arrivals))
    cluster.run()
    ledger = cluster.clients.ledger
    first = statistics.fmean(ledger.ttft[:n])
    later = statistics.fmean(ledger.ttft[n:])
    ttft = (first + (MEASURED_WAVES - 1) * later) / MEASURED_WAVES
    return Prediction(point=point, ttft_ms=1000 * ttft, tpot_ms=1000 * statistics.fmean(ledger.itl))


def errors_of(pairs: Sequence[tuple[float, float]]) -> Errors:
    """Reduce (predicted, measured) pairs."""
    relative = [predicted / measured - 1 for predicted, measured in pairs]
    sizes = sorted(map(abs, relative))
    return Errors(
        points=len(pairs),
        median=round(statistics.median(sizes), 4),
        p90=round(sizes[int(0.9 * (len(sizes) - 1))], 4),
        bias=round(statistics.median(relative), 4),
    )


def summarise(predictions: Sequence[Prediction]) -> tuple[float, dict[str, Errors]]:
    """Return the front end's milliseconds, and errors by what they are of."""
    fitted = [p for p in predictions if p.point.is_for_fit]
    front = statistics.median(p.point.ttft_ms - p.ttft_ms for p in fitted)
    measures: dict[str, Callable[[Prediction], tuple[float, float]]] = {
        "tpot": lambda p: (p.tpot_ms, p.point.tpot_ms),
        "ttft": lambda p: (p.ttft_ms, p.point.ttft_ms),
        "ttft + front": lambda p: (p.ttft_ms + front, p.point.ttft_ms),
    }
    groups = {"fitted half": fitted, "test half": [p for p in predictions if p not in fitted]}
    for p in predictions:
        name = f"{p.point.model} {p.point.precision} {p.point.gpu}"
        groups.setdefault(name, []).append(p)
    return front, {
        f"{name}, {group}": errors_of([measure(p) for p in members])
        for name, measure in measures.items()
        for group, members in groups.items()
        if members
    }


def main() -> int:
    """Fit if asked, predict, print, write."""
    parser = argparse.ArgumentParser(description="validate the twin's cost model")
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {POINTS}")
    parser.add_argument("--fit", action="store_true", help="fit the constants first")
    parser.add_argument("--points", type=int, help="only so many")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    points = read_points(args.data / POINTS)[: args.points]
    if not points:
        raise UsageError(f"no points in {args.data / POINTS}")
    efficiency = fit([p for p in points if p.is_for_fit]) if args.fit else FITTED
    for field in fields(Efficiency):
        print(f"    {field.name}={asdict(efficiency)[field.name]:.3g},")
    predictions = _predict_all(points, efficiency)
    front, errors = summarise(predictions)
    print(f"front end {front:.0f} ms")
    for name, error in errors.items():
        print(
            f"{name:<46} {error.points:>4} points, median {error.median:6.1%}, "
            f"p90 {error.p90:6.1%}, bias {error.bias:+6.1%}"
        )
    if args.json is not None:
        result = Result(
            environment=describe_environment(
                ["python", "benchmarks/twin/validate_costs.py", "--data", "DIR"]
            ),
            efficiency=efficiency,
            front_ms=round(front, 1),
            errors=errors,
            predictions=predictions,
        )
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 0


def _predict_all(points: Sequence[Point], efficiency: Efficiency) -> list[Prediction]:
    predictions = []
    for number, point in enumerate(points, 1):
        print(f"\r{number} of {len(points)}", end="", file=sys.stderr)
        try:
            predictions.append(predict(point, efficiency))
        except ModelTooLarge as error:
            print(f"\rleft out: {error}", file=sys.stderr)
    print("\r", end="", file=sys.stderr)
    return predictions


if __name__ == "__main__":
    raise SystemExit(main())
