"""``headrace simulate``: play a trace on replicas that nobody owns yet, in virtual time."""

from __future__ import annotations

import argparse
import gc
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.terminal import draws_bars
from headrace.clock import MonotonicClock
from headrace.config import read_environment
from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.balancer.registry import POLICY_WORDS, build_policy
from headrace.core.costs.roofline import Deployment, Precision
from headrace.core.router.gossip import GOSSIP_PERIOD
from headrace.core.router.limits import RouterLimits
from headrace.core.scheduler.config import SchedulerConfig
from headrace.errors import UsageError
from headrace.twin.cluster import build_cluster
from headrace.twin.config import Kill, Pool, SimulationConfig, Slow
from headrace.twin.figures import figures_of, to_json
from headrace.twin.groups import Window
from headrace.twin.hardware import GPUS
from headrace.twin.models import MODELS
from headrace.twin.names import look_up
from headrace.twin.network import Delay
from headrace.twin.report import to_comparison, to_table
from headrace.twin.traces.arrivals import merged
from headrace.twin.traces.opening import open_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.twin.figures import Figures
    from headrace.twin.traces.arrivals import Trace
    from headrace.types import Seconds

MAX_REPLICAS = 4096
_BAR = 30
_EPILOG = """\
traces: Azure's CSV, Mooncake's JSON lines, gen:poisson, gen:shared-prefix, gen:sessions (docs/twin)
examples:
  headrace simulate --trace gen:poisson?rate=40 --gpu l4 --replicas 2 --autoscale 2:16 --kill 1@20s
  headrace simulate --trace 'gen:poisson?class=interactive&ttft_ms=500' --trace a.csv?class=batch
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace simulate``."""
    parser.usage = "headrace simulate --trace FILE [flags]"
    parser.description = "Play a trace on replicas that nobody owns yet, in virtual time."
    parser.epilog = _EPILOG
    add = parser.add_argument
    add(
        "--trace",
        required=True,
        action="append",
        metavar="FILE",
        help="a trace, or gen:KIND?...; several: all at once",
    )
    add(
        "--model",
        default="llama-3.1-8b",
        metavar="NAME",
        help="e.g. llama-3.1-8b, llama-3.1-70b, qwen3-32b",
    )
    add("--gpu", default="h100", metavar="NAME", help="e.g. h100, h200, b200, a100, l4, cpu")
    add("--tp", type=_count, default=1, metavar="N", help="GPUs of one replica (1)")
    precisions = [precision.value for precision in Precision]
    add("--precision", choices=precisions, default=precisions[0], metavar="P", help="bf16 or fp8")
    add("--replicas", type=int, default=1, metavar="N", help="ready when the trace begins (1)")
    add("--gateways", default="1", metavar="N@MS", help="that gossip every MS ms, 0: never (1@10)")
    add("--policy", default="predicted_ttft", metavar="NAME", help=POLICY_WORDS)
    add("--compare", metavar="A,B,..", help="policies, one run each, side by side")
    add("--autoscale", metavar="A:B", help="scale by load, from A to B replicas")
    add("--target-ttft", type=_positive, default=1.0, metavar="S", help="of scaling (1)")
    add("--start-seconds", type=_natural, default=40.0, metavar="S", help="of a replica (40)")
    add("--kv-bandwidth", type=_natural, default=0.0, metavar="GB/S", help="for KV blocks (0)")
    _add_faults(add)
    add(
        "--rate",
        type=_positive,
        default=1.0,
        metavar="X",
        help="play the trace X times as fast (1)",
    )
    add("--spread", type=_natural, default=0.0, metavar="S", help="put arrivals off by up to S (0)")
    add("--limit", type=_count, metavar="N", help="only the first N requests of each trace")
    add("--window", metavar="A:B", help="count classes and tenants from second A to B only")
    add(
        "--concurrency", type=_count, metavar="N", help="closed loop: N at a time, no arrival times"
    )
    add("--seed", type=int, default=0, metavar="N", help="of workloads, spread, jitter, clocks (0)")
    add("--block-size", type=_count, default=16, metavar="TOKENS", help="of KV blocks (16)")
    add("--max-num-seqs", type=_count, default=256, metavar="N", help="in one step (256)")
    add("--max-num-batched-tokens", type=_count, default=8192, metavar="N")
    add(
        "--delay-ms", type=_natural, default=0.1, metavar="MS", help="of the network, one way (0.1)"
    )
    add("--jitter-ms", type=_natural, default=0.0, metavar="MS", help="at random on top (0)")
    add("--timeout", type=_positive, default=600.0, metavar="S", help="of a request (600)")
    add("--json", metavar="FILE", help="write all figures there; - is standard output")


def _add_faults(add: Callable[..., object]) -> None:
    add(
        "--kill",
        action="append",
        default=[],
        metavar="N@T",
        help="replica N dies at T, e.g. 3@120s",
    )
    add(
        "--slow",
        action="append",
        default=[],
        metavar="NxF@T",
        help="replica N is F times slower from T on: 1x20@60s",
    )
    add(
        "--hedge-after", type=_natural, default=2.0, metavar="X", help="see gateway.hedge_after (2)"
    )


def main(args: argparse.Namespace) -> int:
    """Run; exit code 1 if requests failed."""
    config = config_from(args)
    policies = _policies(args)
    trace = merged(
        [
            open_trace(name, seed=args.seed + place, limit=args.limit)
            for place, name in enumerate(args.trace)
        ]
    )
    if args.spread:
        trace = trace.spread(args.spread, args.seed)
    if args.rate != 1:
        trace = trace.faster(args.rate)
    gc.freeze()  # the trace stays: collections need not look at it
    runs = [_run(replace(config, policy=policy), trace) for policy in policies]
    text = to_comparison(runs) if args.compare else to_table(runs[0])
    _publish(text, to_json(runs if args.compare else runs[0]), args.json)
    return 1 if any(run.failed or run.wrong_tokens for run in runs) else 0


def config_from(args: argparse.Namespace) -> SimulationConfig:
    """Build the configuration. Raises UsageError."""
    if not 1 <= args.replicas <= MAX_REPLICAS:
        raise UsageError(f"--replicas is {args.replicas}; it must be 1 to {MAX_REPLICAS}")
    floor, ceiling = _range(args.autoscale, args.replicas)
    gateways, period = _gateways(args.gateways)
    return SimulationConfig(
        deployment=Deployment(
            model=look_up("model", args.model, MODELS),
            gpu=look_up("GPU", args.gpu, GPUS),
            tp=args.tp,
            precision=Precision(args.precision),
        ),
        pool=Pool(
            replicas=args.replicas,
            floor=floor,
            ceiling=ceiling,
            start_seconds=args.start_seconds,
        ),
        gateways=gateways,
        gossip_period=period,
        seed=args.seed,
        block_size=args.block_size,
        scheduler=SchedulerConfig(
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            max_num_waiting=1 << 20,
            max_steps_in_flight=2,
            share_partial=False,
        ),
        autoscaler=AutoscalerConfig(target_ttft=args.target_ttft, start_guess=args.start_seconds),
        network=Delay(seconds=args.delay_ms / 1000, jitter=args.jitter_ms / 1000),
        kv_bandwidth=args.kv_bandwidth * 1e9,
        kills=tuple(_kill(text) for text in args.kill),
        slows=tuple(_slow(text) for text in args.slow),
        router=RouterLimits(max_waiting=4096, max_wait=600.0, hedge_after=args.hedge_after),
        request_timeout=args.timeout,
        concurrency=args.concurrency,
        window=_window(args.window),
    )


def _policies(args: argparse.Namespace) -> list[str]:
    names = [name.strip() for name in (args.compare or args.policy).split(",")]
    for name in names:
        build_policy(name)  # an unknown name is told before a long run
    return names


def _range(text: str | None, replicas: int) -> tuple[int, int]:
    if text is None:
        return replicas, replicas
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
    if match is None:
        raise UsageError(f"--autoscale is {text!r}; it must be FLOOR:CEILING, e.g. 2:16")
    floor, ceiling = int(match[1]), int(match[2])
    if not 1 <= floor <= ceiling <= MAX_REPLICAS:
        raise UsageError(
            f"--autoscale {text}: the floor must be 1 or more, and not above the ceiling"
        )
    return floor, ceiling


def _gateways(text: str) -> tuple[int, Seconds | None]:
    """Return how many, and their period of gossip."""
    match = re.fullmatch(r"([1-9]\d?)(?:@(\d{1,5}(?:\.\d{1,3})?))?", text)
    if match is None:
        raise UsageError(f"--gateways is {text!r}; it must be NUMBER or NUMBER@MS, e.g. 4@10")
    return int(match[1]), GOSSIP_PERIOD if match[2] is None else float(match[2]) / 1000 or None


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?):(\d{1,9}(?:\.\d{1,9})?)", text)
    if match is None or float(match[1]) >= float(match[2]):
        raise UsageError(f"--window is {text!r}; it must be FROM:TO in seconds, e.g. 30:90")
    return Window(float(match[1]), float(match[2]))


def _kill(text: str) -> Kill:
    match = re.fullmatch(r"(\d{1,4})@(\d{1,9}(?:\.\d{1,9})?)s?", text)
    if match is None:
        raise UsageError(f"--kill is {text!r}; it must be NUMBER@SECONDS, e.g. 3@120s")
    return Kill(replica=int(match[1]), at=float(match[2]))


def _slow(text: str) -> Slow:
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4}(?:\.\d{1,9})?)@(\d{1,9}(?:\.\d{1,9})?)s?", text)
    if match is None or float(match[2]) <= 0:
        raise UsageError(f"--slow is {text!r}; it must be NUMBERxFACTOR@SECONDS, e.g. 1x20@60s")
    return Slow(replica=int(match[1]), factor=float(match[2]), at=float(match[3]))


def _run(config: SimulationConfig, trace: Trace) -> Figures:
    cluster = build_cluster(config, trace)
    with _Progress(config.policy, trace) as progress:
        cluster.run(progress.update)
    return figures_of(cluster, trace)


class _Progress:
    """``policy [####....]  47%  x 210``: the share of the trace's time, and how fast it goes."""

    def __init__(self, label: str, trace: Trace) -> None:
        self._label = label
        self._trace = trace
        self._clock = MonotonicClock()
        self._begin = self._drawn = self._clock.now()
        self._is_drawn = draws_bars(read_environment())

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def update(self, at: Seconds) -> None:
        """Draw, some times a second."""
        now = self._clock.now()
        if not self._is_drawn or now - self._drawn < 0.2:
            return
        self._drawn = now
        share = min(1.0, at / max(self._trace.arrivals[-1].at, 1e-9))
        bar = "#" * int(share * _BAR)
        factor = at / max(now - self._begin, 1e-9)
        sys.stderr.write(
            f"\r{self._label} [{bar:.<{_BAR}}] {share:4.0%}  {factor:,.0f} x real time "
        )
        sys.stderr.flush()


def _publish(text: str, encoded: bytes, path: str | None) -> None:
    if path == "-":
        print(text, file=sys.stderr)
        sys.stdout.buffer.write(encoded)
        return
    print(text)
    if path is not None:
        try:
            Path(path).write_bytes(encoded)
        except OSError as error:
            raise UsageError(f"--json {path}: {error.strerror}") from error


def _number(least: float, words: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not least <= value < 1e9:
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        return value

    return parse


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


_natural = _number(0.0, "0 or more")
_positive = _number(1e-9, "over 0")
