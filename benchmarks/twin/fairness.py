"""Tenants who ask for more than there is, in virtual time: who gets how much of the engine?

    python benchmarks/twin/fairness.py [--seconds 300] [--json FILE]

The classic overload (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024): two
clients send 1.5 and 3.0 requests a second of 256 + 256 tokens to an engine that is good for about
1.7. Then with weights 1 : 2, with one client whose prompts are mostly cached, and with one that
asks for less than its share. Service is the time of the device, each step's shared out by what
its rows cost. Each scene is run fair and, for comparison, first come, first served. Exits 1 if a
bar is missed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from one_engine import MEASURED, OneEngine, Texts, jain, read_step_time, server_config

from headrace.bench.environment import Environment, describe_environment
from headrace.core.scheduler.order import Order
from headrace.executor.simulated import StepTime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.core.scheduler.config import SchedulerConfig
    from headrace.types import Request, Seconds, Tokens

FAIR = server_config()
FIRST_COME = replace(FAIR, fair=False, order=Order.ARRIVAL)
PROMPT, OUTPUT = 256, 256
CAPACITY = 1.7  # requests/s
KV_TOKENS = 32_768
SETTLING = 60.0  # s that are not judged: queues build up
WINDOW = 10.0  # s
JAIN = 0.99
THROUGHPUT = 0.98  # of first come, first served
SERVED = 0.95  # of what a client asks for that wants less than its share


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Sends requests at an even rate; ``shared`` of each prompt's tokens are always the same."""

    name: str
    rate: float  # requests/s
    weight: float = 1.0
    shared: Tokens = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Clients side by side. Those named in ``greedy`` always have something waiting."""

    name: str
    clients: Sequence[Client]
    greedy: Sequence[str]


SCENES = (
    Scene(
        name="overload",
        clients=(Client(name="a", rate=1.5), Client(name="b", rate=3.0)),
        greedy=("a", "b"),
    ),
    Scene(
        name="weights 1:2",
        clients=(Client(name="a", rate=3.0), Client(name="b", rate=3.0, weight=2.0)),
        greedy=("a", "b"),
    ),
    Scene(
        name="b cached",
        clients=(Client(name="a", rate=1.5), Client(name="b", rate=3.0, shared=224)),
        greedy=("a", "b"),
    ),
    Scene(
        name="a modest",
        clients=(Client(name="a", rate=0.5), Client(name="b", rate=3.0)),
        greedy=("b",),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a client got while judged. ``service`` is of each window, in seconds of the device."""

    service_s: float
    per_weight_s: float
    done_share: float  # of its requests that came and had time to end
    ttft_p50_s: float
    service: Sequence[float] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One scene, one way."""

    shares: Mapping[str, Share]
    tokens_per_s: float  # computed, prompt and output
    jain: float  # of service by weight, over greedy clients
    widest_gap_s: float  # between greedy clients' service by weight, since judging began


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A scene's verdict."""

    scene: str
    gap_bound_s: float
    fair: Run
    first_come: Run
    missed: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is written."""

    environment: Environment
    step_time: StepTime
    outcomes: Sequence[Outcome]


def play(scene: Scene, config: SchedulerConfig, step_time: StepTime, seconds: Seconds) -> Run:
    """Run a scene."""
    engine = OneEngine(config, step_time, kv_tokens=KV_TOKENS)
    arrivals: list[tuple[Seconds, Request]] = []
    for client in scene.clients:
        texts = Texts(client.name, ord(client.name))
        prefix = texts.tokens(client.shared)
        for index in range(int(client.rate * seconds)):
            request = texts.request(PROMPT, OUTPUT, prefix=prefix)
            request = replace(request, tenant=client.name, weight=client.weight)
            arrivals.append((index / client.rate, request))
    engine.run(sorted(arrivals, key=lambda arrival: arrival[0]), seconds)
    return reduce(scene, engine, seconds)


def reduce(scene: Scene, engine: OneEngine, seconds: Seconds) -> Run:
    """Add up who got what."""
    windows = int((seconds - SETTLING) / WINDOW)
    service = {client.name: [0.0] * windows for client in scene.clients}
    tokens = 0
    for each in engine.services:
        index = int((each.at - SETTLING) // WINDOW)
        if 0 <= index < windows:
            service[owner(each.request)][index] += each.seconds
            tokens += each.prefill + each.decodes - each.again
    shares = {
        client.name: share_of(client, engine, service[client.name], seconds)
        for client in scene.clients
    }
    weights = {client.name: client.weight for client in scene.clients}
    greedy = [[s / weights[name] for s in service[name]] for name in scene.greedy]
    return Run(
        shares=shares,
        tokens_per_s=round(tokens / (windows * WINDOW), 1),
        jain=round(jain([sum(each) for each in greedy]), 4),
        widest_gap_s=round(widest_gap(greedy), 2),
    )


def owner(request: str) -> str:
    """Return the client's name in a request's id."""
    return request.rstrip("0123456789")


def share_of(
    client: Client, engine: OneEngine, service: Sequence[float], seconds: Seconds
) -> Share:
    """Reduce one client's requests."""
    mine = [s for s in engine.stories.values() if owner(s.request.id) == client.name]
    due = [s for s in mine if SETTLING <= s.arrived < seconds - SETTLING]
    firsts = sorted(seconds - s.arrived if s.ttft is None else s.ttft for s in due)
    return Share(
        service_s=round(sum(service), 2),
        per_weight_s=round(sum(service) / client.weight, 2),
        done_share=round(sum(s.end == "length" for s in due) / max(1, len(due)), 4),
        ttft_p50_s=round(firsts[len(firsts) // 2], 2) if firsts else 0.0,
        service=[round(each, 3) for each in service],
    )


def widest_gap(services: Sequence[Sequence[float]]) -> float:
    """Return the widest difference, at any window's end, of services added up so far."""
    widest = 0.0
    sums = [0.0] * len(services)
    for window in zip(*services, strict=True):
        sums = [total + each for total, each in zip(sums, window, strict=True)]
        widest = max(widest, max(sums) - min(sums))
    return widest


def gap_bound(step_time: StepTime) -> float:
    """Return twice what a full cache of one client's tokens costs to decode (VTC's theorem)."""
    return 2 * KV_TOKENS * (step_time.per_decode + step_time.per_context * (PROMPT + OUTPUT))


def judge(scene: Scene, fair: Run, first_come: Run, bound: float) -> list[str]:
    """Return the bars that are missed."""
    missed = []
    if fair.jain < JAIN:
        missed.append(f"Jain index {fair.jain:.3f} < {JAIN}")
    if fair.widest_gap_s > bound:
        missed.append(f"service gap {fair.widest_gap_s:.1f} s > {bound:.1f} s")
    are_alike = len({client.shared for client in scene.clients}) == 1  # whoever is served
    if are_alike and fair.tokens_per_s < THROUGHPUT * first_come.tokens_per_s:
        missed.append(f"{fair.tokens_per_s:.0f} tokens/s, {first_come.tokens_per_s:.0f} without")
    missed += [
        f"{name} asks for less than its share and got {share.done_share:.0%}"
        for name, share in fair.shares.items()
        if name not in scene.greedy and share.done_share < SERVED
    ]
    return missed


def compare(scene: Scene, step_time: StepTime, seconds: Seconds) -> Outcome:
    """Run a scene both ways and judge it."""
    fair = play(scene, FAIR, step_time, seconds)
    first_come = play(scene, FIRST_COME, step_time, seconds)
    bound = gap_bound(step_time)
    return Outcome(
        scene=scene.name,
        gap_bound_s=round(bound, 1),
        fair=fair,
        first_come=first_come,
        missed=judge(scene, fair, first_come, bound),
    )


def show(outcome: Outcome) -> None:
    """Print a scene."""
    print(f"\n{outcome.scene} (gap at most {outcome.gap_bound_s:g} s)")
    for name, run in (("fair", outcome.fair), ("first come", outcome.first_come)):
        clients = "; ".join(
            f"{client} {share.service_s:.1f} s, done {share.done_share:.0%}, "
            f"TTFT p50 {share.ttft_p50_s:.1f} s"
            for client, share in run.shares.items()
        )
        print(
            f"  {name:<11}{run.tokens_per_s:7.0f} tokens/s, Jain {run.jain:.3f}, "
            f"gap {run.widest_gap_s:.1f} s | {clients}"
        )
    print("  " + ("; ".join(f"MISSED {text}" for text in outcome.missed) or "reached"))


def capacity(step_time: StepTime, seconds: Seconds = 300.0) -> float:
    """Return how many requests a second the engine ends when many wait."""
    engine = OneEngine(FIRST_COME, step_time, kv_tokens=KV_TOKENS)
    texts = Texts("a", 0)
    engine.run([(0.0, texts.request(PROMPT, OUTPUT)) for _ in range(int(6 * seconds))], seconds)
    tokens = sum(s.prefill + s.decodes for s in engine.services if SETTLING <= s.at < seconds)
    return tokens / (seconds - SETTLING) / (PROMPT + OUTPUT)


def scaled(step_time: StepTime, factor: float) -> StepTime:
    """Return a device whose steps take ``factor`` times as long."""
    return StepTime(
        base=step_time.base * factor,
        per_prefill=step_time.per_prefill * factor,
        per_decode=step_time.per_decode * factor,
        per_context=step_time.per_context * factor,
    )


def main() -> int:
    """Play, print, write; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--speed", type=Path, default=MEASURED, help="of executor_speed.py")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    step_time = read_step_time(args.speed)
    step_time = scaled(step_time, capacity(step_time) / CAPACITY)
    outcomes = []
    for scene in SCENES:
        outcomes.append(compare(scene, step_time, args.seconds))
        show(outcomes[-1])
    if args.json is not None:
        words = ["python", "benchmarks/twin/fairness.py", "--seconds", f"{args.seconds:g}"]
        result = Result(
            environment=describe_environment(words), step_time=step_time, outcomes=outcomes
        )
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return 1 if any(outcome.missed for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
