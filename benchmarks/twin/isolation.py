"""What a saturating load of class batch does to interactive requests, in virtual time.

    python benchmarks/twin/isolation.py [--speed FILE] [--set order=arrival] [--json FILE]

Interactive requests (128 in, 64 out) arrive as a Poisson process at 30 % of the rate that saturates
the engine, alone and beside a backlog of batch requests (512 in, 128 out). Held against the bars:
p95 TTFT at most one planned step above its value alone, goodput at most 2 points lower, and for
batch at least 90 % of the tokens/s that interactive leaves, 70 % of what batch has alone. A
planned step is the p95 of those that ran beside the backlog. Steps take as long as FILE of
``executor_speed.py`` says; the engine has the server's settings but for those of ``--set``. Exits
1 if a bar is missed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from one_engine import MEASURED, OneEngine, Texts, read_step_time, server_config

from headrace.bench.environment import Environment, describe_environment
from headrace.bench.stats import percentile
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from one_engine import Story

    from headrace.core.scheduler.config import SchedulerConfig
    from headrace.executor.simulated import StepTime
    from headrace.types import Request, Seconds

SHARE = 0.3  # of saturation
KV_TOKENS = 32_768
INTERACTIVE = (128, 64)  # tokens in, out
BATCH = (512, 128)
BACKLOG = 4000  # batch requests, more than can be done
WARM_UP, TAIL = 20.0, 20.0  # s in which arrivals are not counted
TTFT, ITL = 0.5, 0.1  # s, of interactive requests, asked for and counted
POINTS, BATCH_SHARE = 2.0, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One run: of interactive requests (0 if there were none), and of batch."""

    name: str
    requests: int
    completed_per_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    itl_p99_ms: float
    good_share: float
    batch_tokens_per_s: float  # output
    step_p50_ms: float
    step_p95_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What was asked for and what came; ``reached`` says whether that is enough."""

    name: str
    limit: float
    measured: float
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is written."""

    environment: Environment
    step_time: StepTime
    phases: Sequence[Phase]
    bars: Sequence[Bar]


def play(
    name: str,
    config: SchedulerConfig,
    step_time: StepTime,
    seconds: Seconds,
    *,
    rate: float = 0.0,
    backlog: Iterable[tuple[Seconds, Request]] = (),
) -> Phase:
    """Run interactive requests at ``rate`` beside a backlog."""
    engine = OneEngine(config, step_time, kv_tokens=KV_TOKENS)
    texts = Texts("person", 1)
    arrivals = [
        (at, interactive(texts, at)) for at in (texts.poisson(rate, seconds) if rate else ())
    ]
    engine.run([*backlog, *arrivals], seconds)
    counted = [
        story
        for story in engine.stories.values()
        if story.request.priority is PriorityClass.INTERACTIVE
        and WARM_UP <= story.arrived < seconds - TAIL
    ]
    return phase_of(name, engine, counted, seconds)


def interactive(texts: Texts, at: Seconds) -> Request:
    """Return a request that comes ``at`` and asks for its targets."""
    return replace(
        texts.request(*INTERACTIVE),
        tenant="people",
        priority=PriorityClass.INTERACTIVE,
        first_token_by=at + TTFT,
        itl=ITL,
    )


def batch(number: int) -> list[tuple[Seconds, Request]]:
    """Return requests that are there from the start."""
    texts = Texts("job", 2)
    return [
        (0.0, replace(texts.request(*BATCH), tenant="jobs", priority=PriorityClass.BATCH))
        for _ in range(number)
    ]


def phase_of(name: str, engine: OneEngine, counted: Sequence[Story], seconds: Seconds) -> Phase:
    """Reduce a run."""
    jobs = [s for s in engine.stories.values() if s.request.priority is PriorityClass.BATCH]
    tokens = sum(WARM_UP <= at < seconds for story in jobs for at in story.times)
    span = seconds - WARM_UP
    ended = [story for story in counted if story.end == "length"]
    firsts = sorted(  # of who has no token yet, what it waited so far
        seconds - story.arrived if story.ttft is None else story.ttft for story in counted
    )
    gaps = sorted(gap for story in counted for gap in story.gaps)
    steps = sorted(engine.steps)
    return Phase(
        name=name,
        requests=len(counted),
        completed_per_s=round(len(ended) / max(span - TAIL, 1.0), 3),
        ttft_p50_ms=ms_at(firsts, 0.5),
        ttft_p95_ms=ms_at(firsts, 0.95),
        itl_p99_ms=ms_at(gaps, 0.99),
        good_share=round(sum(s.is_good(TTFT, ITL) for s in counted) / max(1, len(counted)), 4),
        batch_tokens_per_s=round(tokens / span, 1),
        step_p50_ms=ms_at(steps, 0.5),
        step_p95_ms=ms_at(steps, 0.95),
    )


def ms_at(ascending: Sequence[Seconds], share: float) -> float:
    """Return the value below which ``share`` of the values lie, in milliseconds."""
    return round(1000 * percentile(ascending, share), 1) if ascending else 0.0


def saturated_rate(config: SchedulerConfig, step_time: StepTime, seconds: Seconds) -> float:
    """Return how many interactive requests a second the engine ends when all are there."""
    engine = OneEngine(config, step_time, kv_tokens=KV_TOKENS)
    texts = Texts("person", 3)
    engine.run([(0.0, texts.request(*INTERACTIVE)) for _ in range(BACKLOG)], seconds)
    ends = [s.times[-1] for s in engine.stories.values() if s.end == "length"]
    return sum(WARM_UP <= end < seconds for end in ends) / (seconds - WARM_UP)


def judge(alone: Phase, jobs: Phase, both: Phase) -> list[Bar]:
    """Hold the run of both against the runs of each."""
    ttft = alone.ttft_p95_ms + both.step_p95_ms
    good = round(100 * (alone.good_share - both.good_share), 2)
    left = BATCH_SHARE * (1 - SHARE) * jobs.batch_tokens_per_s
    return [
        Bar(
            name="TTFT p95, ms, at most one planned step above alone",
            limit=round(ttft, 1),
            measured=both.ttft_p95_ms,
            reached=both.ttft_p95_ms <= ttft,
        ),
        Bar(
            name="goodput lost, points",
            limit=POINTS,
            measured=good,
            reached=good <= POINTS,
        ),
        Bar(
            name="batch tokens/s, at least 90 % of what interactive leaves",
            limit=round(left, 1),
            measured=both.batch_tokens_per_s,
            reached=both.batch_tokens_per_s >= left,
        ),
    ]


def show(phases: Sequence[Phase], bars: Sequence[Bar]) -> None:
    """Print both tables."""
    print(
        f"{'':<18}{'requests':>9}{'TTFT p50':>10}{'p95 ms':>9}{'ITL p99':>9}{'good':>8}"
        f"{'batch tok/s':>13}{'step p50':>10}{'p95 ms':>8}"
    )
    for each in phases:
        print(
            f"{each.name:<18}{each.requests:>9}{each.ttft_p50_ms:>10.1f}{each.ttft_p95_ms:>9.1f}"
            f"{each.itl_p99_ms:>9.1f}{each.good_share:>8.1%}{each.batch_tokens_per_s:>13,.1f}"
            f"{each.step_p50_ms:>10.1f}{each.step_p95_ms:>8.1f}"
        )
    for bar in bars:
        word = "reached" if bar.reached else "MISSED"
        print(f"  {word:<9}{bar.name}: {bar.measured:g} (bar {bar.limit:g})")


def main() -> int:
    """Play, print, write; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--speed", type=Path, default=MEASURED, help="of executor_speed.py")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    step_time, config = read_step_time(args.speed), server_config(args.set)
    saturated = saturated_rate(config, step_time, args.seconds)
    rate = SHARE * saturated
    print(f"{step_time}\nsaturated at {saturated:.2f} requests/s, interactive at {rate:.2f}")
    alone = play("interactive alone", config, step_time, args.seconds, rate=rate)
    jobs = play("batch alone", config, step_time, args.seconds, backlog=batch(BACKLOG))
    both = play("both", config, step_time, args.seconds, rate=rate, backlog=batch(BACKLOG))
    bars = judge(alone, jobs, both)
    show([alone, jobs, both], bars)
    if args.json is not None:
        words = ["python", "benchmarks/twin/isolation.py", "--seconds", f"{args.seconds:g}"]
        words += [word for setting in args.set for word in ("--set", setting)]
        result = Result(
            environment=describe_environment(words),
            step_time=step_time,
            phases=[alone, jobs, both],
            bars=bars,
        )
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 0 if all(bar.reached for bar in bars) else 1


if __name__ == "__main__":
    raise SystemExit(main())
