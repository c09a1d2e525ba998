"""A long prompt's blocks change hands by slices; nobody notices but the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.core.scheduler.config import SchedulerConfig
from headrace.machine import Tick
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec, undisturbed
from headrace.types import FinishReason, Request, RequestId

if TYPE_CHECKING:
    from headrace.testing.harness import EngineHarness

SLICE = 3
LENGTH = 81
SPEC = simulated_spec(num_blocks=64, block_size=4, max_model_len=200)


def request_of(name: str, length: int = LENGTH, *, max_tokens: int = 4, first: int = 7) -> Request:
    prompt = tuple((first + i) % 50 for i in range(length))
    return Request(id=RequestId(name), prompt=prompt, max_tokens=max_tokens, sampling=GREEDY)


def engine_of(*, slice_blocks: int = SLICE, steps_in_flight: int = 1) -> EngineHarness:
    """An engine that has served a long prompt, and is idle."""
    config = SchedulerConfig(slice_blocks=slice_blocks, max_steps_in_flight=steps_in_flight)
    engine = simulated_engine(SPEC, config)
    engine.submit(request_of("first"))
    engine.run_until_idle()
    return engine


def num_moved(engine: EngineHarness, before: int) -> int:
    return abs(engine.core.scheduler.kv.num_free - before)


def test_an_engine_that_is_quiet_keeps_no_blocks_and_says_so():
    engine = simulated_engine(SPEC, SchedulerConfig(slice_blocks=SLICE))
    engine.submit(request_of("long"))
    while engine.num_in_flight:
        engine.finish_step()
    assert engine.core.scheduler.kv.counts().leaving > 0
    assert engine.core.next_wakeup() is not None
    for _ in range(LENGTH):
        wakeup = engine.core.next_wakeup()
        if wakeup is None:
            break
        engine.now = wakeup
        before = engine.core.scheduler.kv.num_free
        engine.feed(Tick())
        assert num_moved(engine, before) <= SLICE
    assert engine.core.scheduler.kv.counts().free == SPEC.num_blocks
    assert engine.reports[-1].kv_blocks_free == SPEC.num_blocks


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_cached_prompt_is_in_no_step_before_it_has_all_of_its_prefix(steps_in_flight: int):
    engine = engine_of(steps_in_flight=steps_in_flight)
    num_plans = len(engine.plans)
    engine.submit(request_of("again"))
    assert not engine.num_in_flight
    num_events = 0
    while not engine.num_in_flight and num_events < LENGTH:
        before = engine.core.scheduler.kv.num_free
        engine.go_on()
        assert num_moved(engine, before) <= SLICE + 2  # a copy, and a block to grow into
        num_events += 1
    assert num_events == 20 // SLICE  # 20 blocks, the first slice came with Submit
    (row,) = engine.plans[num_plans].rows
    assert (row.start, row.num_tokens) == (80, 1)
    engine.run_until_idle()
    assert engine.outputs[RequestId("again")][-1].cached_tokens == 80
    assert engine.tokens[RequestId("again")] == engine.tokens[RequestId("first")]


def test_others_go_on_while_a_long_prefix_is_taken_in():
    engine = engine_of()
    engine.submit(request_of("beside", 5, max_tokens=30, first=1))
    engine.submit(request_of("again"))
    planned = len(engine.plans)
    while len(engine.plans[-1].rows) < 2:
        assert engine.num_in_flight
        engine.finish_step()
    assert len(engine.plans) - planned == 7  # a slice for each step
    engine.run_until_idle()
    for name in ("beside", "again"):
        assert engine.finishes[RequestId(name)] is FinishReason.LENGTH
    alone = undisturbed(request_of("beside", 5, max_tokens=30, first=1), SPEC)
    assert tuple(engine.tokens[RequestId("beside")]) == alone.tokens


def test_who_goes_while_it_takes_its_prefix_leaves_nothing_to_the_executor():
    engine = engine_of()
    planned = len(engine.plans)
    engine.submit(request_of("again"))
    engine.abort(RequestId("again"))
    engine.run_until_idle()
    engine.submit(request_of("later", 5, first=2))
    assert engine.finishes[RequestId("again")] is FinishReason.ABORT
    assert engine.plans[planned].ends == (0,)  # the first one's; of the other it never heard
    engine.run_until_idle()
    assert engine.core.scheduler.kv.counts().free == SPEC.num_blocks


def test_a_newcomer_gets_the_memory_that_a_long_one_is_leaving():
    spec = simulated_spec(num_blocks=24, block_size=4, max_model_len=96)
    engine = simulated_engine(spec, SchedulerConfig(slice_blocks=1))
    engine.submit(request_of("long"))
    while RequestId("long") not in engine.finishes:
        engine.finish_step()
    assert engine.core.scheduler.kv.counts().leaving > 10
    engine.submit(request_of("newcomer", 70, first=3))
    assert engine.num_in_flight == 1  # at once
    engine.run_until_idle()
    assert engine.finishes[RequestId("newcomer")] is FinishReason.LENGTH


def test_all_at_once_and_by_slices_come_to_the_same_tokens_and_steps():
    engines = [engine_of(slice_blocks=each) for each in (1, SLICE, 1 << 20)]
    for engine in engines:
        engine.submit(request_of("again"))
        engine.run_until_idle()
    plans = [[(p.rows, p.starts, p.copies) for p in engine.plans] for engine in engines]
    assert plans[0] == plans[1] == plans[2]
