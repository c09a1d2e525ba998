"""Compare balancer policies on the real model: three replicas, shared prefixes, conversations.

    python benchmarks/serve/real_policies.py --rounds 3
    python benchmarks/serve/real_policies.py --policies predicted_ttft,lmetric --workloads C

Rounds are interleaved. In each turn `headrace serve` is started with empty caches, gets a workload
and is stopped: C (64 requests in 8 groups with 600 common and 40 own tokens, 16 at a time, 32 out)
or D (12 conversations side by side, 5 turns each). Writes JSON with every turn; prints medians by
workload: share of prompt tokens cached, TTFT, output rate. Replicas that share two cores
disturb each other, so judge the cached share and the order of TTFT, not their size.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec
from workloads import Driver, Prompts

from headrace.bench.client import Client
from headrace.bench.command import loop_factory
from headrace.bench.config import Target
from headrace.bench.environment import Environment, describe_environment
from headrace.cli.models import local_model
from headrace.clock import MonotonicClock
from headrace.config import Config, read_environment
from headrace.core.balancer.registry import POLICIES, build_policy
from headrace.core.balancer.round_robin import RoundRobin
from headrace.testing.server_process import running_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.bench.prompts import CountTokens
    from headrace.bench.stats import Summary

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One policy's turn in a round."""

    policy: str
    workload: str
    round: int
    cached_share: float
    summary: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Medians:
    """Of a policy's turns."""

    cached_share: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    output_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that a run found."""

    environment: Environment
    flags: Sequence[str]
    turns: Sequence[Turn]
    medians: dict[str, dict[str, Medians]]  # by workload and policy


def token_counter() -> CountTokens:
    """Return a counter in the default model's tokenizer."""
    environment = read_environment()
    _, text = local_model(DEFAULT_MODEL, Config(), environment)
    return lambda prompt: len(text.tokenizer.encode(prompt))


def take_turn(
    policy: str, workload: str, number: int, args: argparse.Namespace, count: CountTokens
) -> Turn:
    """Start a server, load it, stop it."""
    flags = ("--policy", policy, *server_flags(args))
    with (
        running_server(DEFAULT_MODEL, *flags) as server,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        summary = runner.run(load(f"{server.url}/v1", workload, args.seed, number, count))
    share = summary.cached_tokens / max(1, summary.prompt_tokens)
    turn = Turn(policy=policy, workload=workload, round=number, cached_share=share, summary=summary)
    ttft = summary.ttft_ms
    assert ttft is not None, summary.errors
    print(
        f"  round {number} {workload} {policy:<20} cached {share:6.1%}  TTFT p50 {ttft.p50:7.0f}"
        f" ms  p95 {ttft.p95:7.0f} ms  {summary.output_tokens_per_s:6.1f} tokens/s"
        f"{f'  {summary.failed} FAILED' if summary.failed else ''}",
        flush=True,
    )
    return turn


def server_flags(args: argparse.Namespace) -> list[str]:
    """Return what every turn's server is started with, besides its policy."""
    return ["--replicas", str(args.replicas), "--threads", str(args.threads)]


async def load(base_url: str, workload: str, seed: int, number: int, count: CountTokens) -> Summary:
    """Run the workload once."""
    clock = MonotonicClock()
    client = Client(target=Target(base_url=base_url), model=DEFAULT_MODEL, clock=clock)
    driver = Driver(client, clock, Prompts(count, seed, number))
    await driver.warm_up()
    return await driver.run(workload)


def medians_of(turns: Sequence[Turn]) -> Medians:
    """Return the medians of one policy's turns."""
    ttfts = [turn.summary.ttft_ms for turn in turns if turn.summary.ttft_ms is not None]
    return Medians(
        cached_share=median(turn.cached_share for turn in turns),
        ttft_p50_ms=median(ttft.p50 for ttft in ttfts),
        ttft_p95_ms=median(ttft.p95 for ttft in ttfts),
        output_tokens_per_s=median(turn.summary.output_tokens_per_s for turn in turns),
    )


def print_table(workload: str, medians: dict[str, Medians]) -> None:
    """Print medians of one workload, with ratios to round_robin, else to the last policy."""
    base = medians.get(RoundRobin.name, list(medians.values())[-1])
    print(
        f"\n{workload + ', medians':<20}{'cached':>8}{'TTFT p50':>12}{'TTFT p95':>12}"
        f"{'tokens/s':>12}"
    )
    for policy, row in medians.items():
        ratios = (
            row.ttft_p50_ms / base.ttft_p50_ms,
            row.ttft_p95_ms / base.ttft_p95_ms,
            row.output_tokens_per_s / base.output_tokens_per_s,
        )
        print(
            f"{policy:<20}{row.cached_share:>8.1%}{row.ttft_p50_ms:>9.0f} ms"
            f"{row.ttft_p95_ms:>9.0f} ms{row.output_tokens_per_s:>12.1f}   "
            + " / ".join(f"x{ratio:.2f}" for ratio in ratios)
        )


def main() -> int:
    """Run all rounds; exit 1 if a request failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", default=",".join(POLICIES), help="(all)")
    parser.add_argument("--workloads", default="C,D", help="of B, C, D (C,D)")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    count = token_counter()
    policies, workloads = args.policies.split(","), args.workloads.split(",")
    for policy in policies:
        build_policy(policy)  # an unknown one is told before a long run
    turns = [
        take_turn(policy, workload, number, args, count)
        for number in range(1, args.rounds + 1)
        for workload in workloads
        for policy in policies
    ]
    medians = {
        workload: {
            policy: medians_of([t for t in turns if (t.workload, t.policy) == (workload, policy)])
            for policy in policies
        }
        for workload in workloads
    }
    for workload in workloads:
        print_table(workload, medians[workload])
    if args.json is not None:
        result = Result(
            environment=describe_environment(sys.argv),
            flags=server_flags(args),
            turns=turns,
            medians=medians,
        )
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(result)), indent=1))
    return 1 if any(turn.summary.failed for turn in turns) else 0


if __name__ == "__main__":
    sys.exit(main())
