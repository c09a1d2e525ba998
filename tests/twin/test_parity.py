"""One code, two clocks: the same requests through both drivers give the same effects.

Parity form (a): AsyncioDriver on the virtual-time loop against the simulator, to the last bit of
every time. Form (b): the journal of a run, replayed into a fresh machine.
"""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeAlias

import pytest

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.events import (
    Abort,
    EngineEffect,
    EngineEvent,
    Reject,
    StepDone,
    Submit,
)
from headrace.errors import DeadlineInfeasible
from headrace.executor.simulated import SimulatedExecutor
from headrace.machine import Source
from headrace.server.driver import AsyncioDriver
from headrace.testing.engines import simulated_spec
from headrace.testing.journal import Journal, replay
from headrace.testing.virtual_loop import VirtualTimeLoop
from headrace.twin.device import SimulatedDevice
from headrace.twin.simulator import SimulatedDriver, Simulator
from headrace.types import (
    FinishReason,
    Output,
    PriorityClass,
    ReportLoad,
    Request,
    RequestId,
    SamplingParams,
)

if TYPE_CHECKING:
    from headrace.types import Seconds

EngineJournal: TypeAlias = Journal[EngineEvent, EngineEffect]
Arrivals: TypeAlias = list[tuple[float, Submit | Abort]]

NUM_REQUESTS = 300
SPEC = simulated_spec(num_blocks=16, block_size=16, max_model_len=512)


def config_of(depth: int) -> SchedulerConfig:
    return SchedulerConfig(
        max_num_seqs=12,
        max_num_batched_tokens=64,
        max_steps_in_flight=depth,
        report_period=0.3,
        itl=0.05,
        batch_itl=0.1,
    )


def arrivals_of(seed: int, num_requests: int = NUM_REQUESTS) -> Arrivals:
    """Requests, some at the very same time, some aborted, some in a hurry."""
    random = Random(seed)
    prefixes = [tuple(random.choices(range(1000), k=100)) for _ in range(5)]
    arrivals: Arrivals = []
    now = 0.0
    for index in range(num_requests):
        now += random.expovariate(12)
        if random.random() < 0.3:
            now = round(now + 0.05, 1)
        shared = random.choice(prefixes)[: random.randrange(1, 100)]
        request = Request(
            id=RequestId(f"r{index}"),
            prompt=shared + tuple(random.choices(range(1000), k=random.randrange(40))),
            max_tokens=random.randrange(1, 60),
            stop_token_ids=tuple(range(20)),
            sampling=SamplingParams(seed=index),
            deadline=now + random.choice([0.1, 0.3, 1.5]) if random.random() < 0.3 else None,
            first_token_by=now + random.choice([0.2, 2.0]) if random.random() < 0.1 else None,
            itl=random.choice([None, None, 0.03]),
            priority=random.choice(list(PriorityClass)),
            tenant=random.choice(["a", "a", "b"]),
            weight=random.choice([1.0, 2.0]),
        )
        arrivals.append((now, Submit(request)))
        if random.random() < 0.25:
            arrivals.append((now + random.choice([0.0, 0.5, 3.0]), Abort(request.id)))
    return arrivals


def in_the_simulator(arrivals: Arrivals, config: SchedulerConfig) -> EngineJournal:
    simulator, journal = Simulator(), EngineJournal()

    def step_done(when: Seconds, event: StepDone) -> None:
        driver.feed_at(when, event, Source.DEVICE)

    executor = SimulatedExecutor(SPEC, check_kv=True)
    device = SimulatedDevice(executor, lambda: simulator.now, step_done)
    driver: SimulatedDriver[EngineEvent, EngineEffect] = SimulatedDriver(
        simulator,
        build_engine_core(SPEC, config),
        perform=device.perform,
        observe=journal.observe,
    )
    for when, event in arrivals:
        driver.feed_at(when, event)
    simulator.run()
    return journal


def on_asyncio(arrivals: Arrivals, config: SchedulerConfig) -> EngineJournal:
    journal = EngineJournal()

    async def main(loop: VirtualTimeLoop) -> None:
        def step_done(when: Seconds, event: StepDone) -> None:
            loop.call_at(when, driver.feed, event, Source.DEVICE)

        device = SimulatedDevice(SimulatedExecutor(SPEC, check_kv=True), loop.time, step_done)
        driver: AsyncioDriver[EngineEvent, EngineEffect] = AsyncioDriver(
            build_engine_core(SPEC, config),
            perform=device.perform,
            clock=loop,
            loop=loop,
            on_fault=pytest.fail,
            observe=journal.observe,
        )
        for when, event in arrivals:
            loop.call_at(when, partial(driver.feed, event))
        await asyncio.sleep(1000)
        driver.close()

    loop = VirtualTimeLoop()
    loop.run_until_complete(main(loop))
    loop.close()
    return journal


@pytest.mark.parametrize("depth", [1, 2])
def test_both_drivers_give_the_same_effects_in_the_same_order_and_time(depth: int):
    config = config_of(depth)
    simulated = in_the_simulator(arrivals_of(1), config)
    real = on_asyncio(arrivals_of(1), config)
    assert simulated.entries == real.entries
    assert simulated.text() == real.text()


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_both_drivers_agree_on_a_thousand_seeds():
    for seed in range(1000):
        config = config_of(1 + seed % 2)
        arrivals = arrivals_of(seed, num_requests=40)
        assert in_the_simulator(arrivals, config).entries == on_asyncio(arrivals, config).entries


def test_the_run_that_is_compared_has_everything_in_it():
    journal = in_the_simulator(arrivals_of(1), config_of(2))
    ends = [
        output.finish
        for effect in journal.effects
        for output in getattr(effect, "outputs", ())
        if isinstance(output, Output) and output.finish
    ]
    refused = [effect for effect in journal.effects if isinstance(effect, Reject)]
    assert len(ends) + len(refused) == NUM_REQUESTS
    assert {each.code for each in refused} == {DeadlineInfeasible.code}
    assert set(ends) == set(FinishReason) - {FinishReason.ERROR}
    assert min(ends.count(reason) for reason in set(ends)) >= 10
    reports = [effect for effect in journal.effects if isinstance(effect, ReportLoad)]
    assert reports[-1].preemptions_total >= 5
    times = [entry.now for entry in journal.entries]
    assert len(times) - len(set(times)) >= 20  # ties


def test_a_journal_replayed_into_a_fresh_machine_gives_the_same_effects():
    config = config_of(2)
    journal = on_asyncio(arrivals_of(2), config)
    assert replay(journal, build_engine_core(SPEC, config)).text() == journal.text()


def test_two_runs_of_one_seed_give_byte_identical_traces():
    first, second = (in_the_simulator(arrivals_of(3), config_of(1)).text() for _ in range(2))
    assert first == second
    assert first != in_the_simulator(arrivals_of(4), config_of(1)).text()
