"""What preemption costs when sequences outgrow the KV cache, in virtual time.

    python benchmarks/twin/preemption.py [--requests 600] [--json FILE]

Requests of many lengths keep all seats taken while the cache holds only a part of what they come
to: seats times mean length is 1.5, 1.75 and 2 times the cache. The recompute tax is the share of
all computed tokens that had been computed before. Each policy of ``SchedulerConfig.preemption``
plays the same trace. Blocks of preempted sequences stay in the prefix cache, and what is found
there again is not computed; last in, first out with full recomputation, as the bar has it, is
"last_in" with all that its victims had computed counted again; the bar is half of that. Steps take
as long as FILE of ``executor_speed.py`` says. Exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from one_engine import MEASURED, OneEngine, Texts, read_step_time, server_config

from headrace.bench.environment import Environment, describe_environment
from headrace.bench.stats import percentile
from headrace.core.scheduler.preemption import Preemption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.executor.simulated import StepTime
    from headrace.types import Request, Seconds

BASELINE, OURS = Preemption.LAST_IN, Preemption.LEAST_REGRET
SEATS = 64
OVER = (1.5, 1.75, 2.0)
PROMPTS, OUTPUTS = (64, 512), (64, 768)  # tokens, evenly spread
RATE = 20.0  # arrivals/s: more than is served, so that seats are always wanted
BAR = 0.5  # of the baseline's tax
BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Tax:
    """What a policy paid on a trace."""

    policy: str
    over: float  # what seats come to, in caches
    computed_tokens: int
    again_tokens: int
    share: float
    preemptions: int
    full_share: float  # if nothing of what preempted sequences had computed were found again
    completed: int
    seconds: float  # to the last end
    ttft_p95_s: float
    worst_gap_p95_s: float  # of each request's longest gap between two tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is written."""

    environment: Environment
    step_time: StepTime
    taxes: Sequence[Tax]


def trace(number: int) -> list[tuple[Seconds, Request]]:
    """Return the requests with their arrivals."""
    rng = np.random.default_rng(5)
    texts = Texts("r", 6)
    return [
        (
            index / RATE,
            texts.request(int(rng.integers(*PROMPTS)), int(rng.integers(*OUTPUTS))),
        )
        for index in range(number)
    ]


def play(policy: Preemption, over: float, number: int, step_time: StepTime) -> Tax:
    """Run the trace to its end."""
    config = replace(server_config(), max_num_seqs=SEATS, preemption=policy)
    tokens = int(SEATS * (sum(PROMPTS) + sum(OUTPUTS)) / 2 / over)
    engine = OneEngine(config, step_time, kv_tokens=tokens, block=BLOCK)
    engine.run(trace(number), math.inf)
    stories = list(engine.stories.values())
    computed = sum(each.prefill + each.decodes for each in engine.services)
    again = sum(each.again for each in engine.services)
    firsts = sorted(story.ttft for story in stories if story.ttft is not None)
    worst = sorted(max(story.gaps, default=0.0) for story in stories)
    return Tax(
        policy=policy,
        over=over,
        computed_tokens=computed,
        again_tokens=again,
        share=round(again / computed, 4),
        preemptions=engine.num_restarts,
        full_share=round(full_share(computed - again, engine.dropped_tokens), 4),
        completed=sum(story.end == "length" for story in stories),
        seconds=round(max(story.times[-1] for story in stories if story.times), 1),
        ttft_p95_s=round(percentile(firsts, 0.95), 2),
        worst_gap_p95_s=round(percentile(worst, 0.95), 2),
    )


def full_share(once: int, dropped: int) -> float:
    """Return the tax if all that was dropped is computed again, beside ``once``."""
    return dropped / (once + dropped)


def judge(taxes: Sequence[Tax]) -> list[str]:
    """Return the bars that are missed."""
    missed = []
    for over in dict.fromkeys(tax.over for tax in taxes):
        of = {tax.policy: tax for tax in taxes if tax.over == over}
        if of[OURS].share > BAR * of[BASELINE].full_share:
            missed.append(
                f"x{over:g}: {of[OURS].share:.2%} again, full recomputation "
                f"{of[BASELINE].full_share:.2%}"
            )
    return missed


def show(tax: Tax) -> str:
    return (
        f"x{tax.over:<5g}{tax.policy:<14}{tax.preemptions:>5} preempted, {tax.again_tokens:>7,} of "
        f"{tax.computed_tokens:,} tokens again: {tax.share:6.2%} (full {tax.full_share:6.2%}); "
        f"{tax.completed} done in {tax.seconds:.0f} s, TTFT p95 {tax.ttft_p95_s:.1f} s, "
        f"worst gap p95 {tax.worst_gap_p95_s:.1f} s"
    )


def main() -> int:
    """Play, print, write; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--speed", type=Path, default=MEASURED, help="of executor_speed.py")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--over", type=float, nargs="+", default=list(OVER))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    step_time = read_step_time(args.speed)
    taxes: list[Tax] = []
    for over in args.over:
        for policy in (BASELINE, OURS):
            taxes.append(play(policy, over, args.requests, step_time))
            print(show(taxes[-1]), flush=True)
    missed = judge(taxes)
    print("\n".join(f"MISSED {text}" for text in missed) or "nothing missed")
    if args.json is not None:
        words = ["python", "benchmarks/twin/preemption.py", "--requests", f"{args.requests}"]
        result = Result(environment=describe_environment(words), step_time=step_time, taxes=taxes)
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
