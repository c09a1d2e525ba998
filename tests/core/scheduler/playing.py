"""Requests, loads and engines in virtual time for tests of policies."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from headrace.core.scheduler.engine_core import build_engine_core
from headrace.executor.simulated import SimulatedExecutor
from headrace.testing.engines import GREEDY, simulated_spec
from headrace.testing.rehearsal import Rehearsal, Story
from headrace.types import PriorityClass, Request, RequestId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from headrace.core.scheduler.config import SchedulerConfig
    from headrace.core.scheduler.plan import StepPlan

VOCABULARY = 256
STOP = 7

Arrival = tuple[float, Request]


def request_of(
    name: str,
    prompt: Sequence[int] | int = 4,
    max_tokens: int = 4,
    *,
    tenant: str = "default",
    priority: PriorityClass = PriorityClass.STANDARD,
    weight: float = 1.0,
    itl: float | None = None,
    first_token_by: float | None = None,
    deadline: float | None = None,
    stop: tuple[int, ...] = (),
) -> Request:
    """A request; a number as prompt: so many tokens like nobody else's."""
    if isinstance(prompt, int):
        own = random.Random(name)
        prompt = [own.randrange(VOCABULARY) for _ in range(prompt)]
    return Request(
        id=RequestId(name),
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        stop_token_ids=stop,
        sampling=GREEDY,
        tenant=tenant,
        priority=priority,
        weight=weight,
        itl=itl,
        first_token_by=first_token_by,
        deadline=deadline,
    )


def poisson(
    rate: float, until: float, make: Callable[[int, random.Random, float], Request], seed: int = 1
) -> list[Arrival]:
    """Requests at ``rate`` until ``until``; ``make(index, random, now)``."""
    rng = random.Random(seed)
    arrivals: list[Arrival] = []
    now = rng.expovariate(rate)
    while now < until:
        arrivals.append((now, make(len(arrivals), rng, now)))
        now += rng.expovariate(rate)
    return arrivals


def merged(*loads: Iterable[Arrival]) -> list[Arrival]:
    """Several loads in order of time."""
    return sorted((a for load in loads for a in load), key=lambda arrival: arrival[0])


def rehearsal(
    config: SchedulerConfig,
    *,
    num_blocks: int = 2048,
    watch: Callable[[float, StepPlan], None] = lambda _now, _plan: None,
) -> Rehearsal:
    """An engine of blocks of 16 tokens on the simulated executor."""
    spec = simulated_spec(
        num_blocks=num_blocks, block_size=16, max_model_len=1 << 17, vocab_size=VOCABULARY
    )
    return Rehearsal(build_engine_core(spec, config), SimulatedExecutor(spec), watch=watch)


def of_class(played: Rehearsal, priority: PriorityClass) -> list[Story]:
    return [s for s in played.stories.values() if s.request.priority is priority]


def of_tenant(played: Rehearsal, tenant: str) -> list[Story]:
    return [s for s in played.stories.values() if s.request.tenant == tenant]


def num_tokens(stories: Iterable[Story]) -> int:
    """Tokens that came out."""
    return sum(len(story.times) for story in stories)


def quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
