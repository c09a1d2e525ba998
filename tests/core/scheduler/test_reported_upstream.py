"""What users of other engines reported, each as what would have caught it here.

A test is named after what must not happen; the comment cites the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.preemption import Preemption
from headrace.errors import ContextLengthExceeded, DeadlineInfeasible, Overloaded
from headrace.machine import Tick
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec, undisturbed
from headrace.types import FinishReason, PriorityClass, Request, RequestId

if TYPE_CHECKING:
    from headrace.testing.harness import EngineHarness

BLOCK_SIZE = 4
ENDED_WELL = {FinishReason.STOP, FinishReason.LENGTH}


def engine_with(
    *,
    num_blocks: int = 16,
    max_num_seqs: int = 8,
    budget: int = 16,
    max_num_waiting: int = 4096,
    itl: float | None = None,
    max_passes: int = 16,
    order: Order = Order.DUE,
    preemption: Preemption = Preemption.LEAST_REGRET,
) -> EngineHarness:
    spec = simulated_spec(num_blocks=num_blocks, block_size=BLOCK_SIZE, max_model_len=4096)
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_num_waiting=max_num_waiting,
        itl=itl,
        max_passes=max_passes,
        order=order,
        preemption=preemption,
    )
    return simulated_engine(spec, config)


def request_of(
    name: str,
    length: int,
    max_tokens: int = 8,
    *,
    deadline: float | None = None,
    first_token_by: float | None = None,
    priority: PriorityClass = PriorityClass.STANDARD,
    tenant: str = "default",
) -> Request:
    seed = sum(map(ord, name))
    return Request(
        id=RequestId(name),
        prompt=tuple((seed * 31 + i * 7) % 1000 for i in range(length)),
        max_tokens=max_tokens,
        sampling=GREEDY,
        deadline=deadline,
        first_token_by=first_token_by,
        priority=priority,
        tenant=tenant,
    )


def finished_at(engine: EngineHarness, name: str, max_steps: int = 2000) -> int:
    """Run until a request has ended; return how many steps that took."""
    for step in range(max_steps):
        if RequestId(name) in engine.finishes:
            return step
        engine.finish_step()
    raise AssertionError(f"{name} did not end within {max_steps} steps")


def assert_as_alone(engine: EngineHarness, request: Request, num_blocks: int) -> None:
    spec = simulated_spec(num_blocks=num_blocks, block_size=BLOCK_SIZE, max_model_len=4096)
    assert tuple(engine.tokens[request.id]) == undisturbed(request, spec).tokens


# Out of memory, deadlock


def test_a_prompt_that_fits_the_model_and_not_the_cache_is_refused_and_blocks_nobody():
    # vllm-project/vllm#39734: such a request deadlocked the scheduler
    engine = engine_with()
    engine.submit(request_of("too long", 65))
    assert engine.rejects[RequestId("too long")].code == ContextLengthExceeded.code
    assert "the KV cache holds 64" in engine.rejects[RequestId("too long")].reason
    engine.submit(request_of("next", 8))
    engine.run_until_idle()
    assert engine.finishes[RequestId("next")] in ENDED_WELL


def test_a_request_that_grows_to_the_whole_cache_ends_at_its_length():
    # vllm#39734 once more: prompt fits, prompt and output together do not
    engine = engine_with()
    engine.submit(request_of("grows", 60, max_tokens=4000))
    engine.submit(request_of("other", 12, max_tokens=10))
    engine.run_until_idle()
    assert engine.finishes[RequestId("grows")] is FinishReason.LENGTH
    assert len(engine.tokens[RequestId("grows")]) == 4
    assert engine.finishes[RequestId("other")] in ENDED_WELL


def test_admission_goes_on_after_the_cache_was_full_again_and_again():
    # vllm#45414, #53130: admission stopped for ever while health stayed green
    engine = engine_with(num_blocks=12)
    for wave in range(30):
        for index in range(4):
            engine.submit(request_of(f"{wave}-{index}", 8 + 7 * index, max_tokens=12))
        engine.run_until_idle()
    assert len(engine.finishes) == 120
    assert set(engine.finishes.values()) <= ENDED_WELL
    assert engine.core.scheduler.kv.counts().free == 12


@pytest.mark.parametrize("preemption", list(Preemption))
def test_when_every_decode_wants_a_block_and_none_is_free_nobody_dies(preemption: Preemption):
    # vllm#45856: "Cannot get N free blocks" ended the engine
    engine = engine_with(num_blocks=9, preemption=preemption)
    requests = [request_of(f"r{i}", 8, max_tokens=20) for i in range(4)]
    for request in requests:
        engine.submit(request)
    engine.run_until_idle()
    assert engine.reports[-1].preemptions_total > 0
    for request in requests:
        assert_as_alone(engine, request, 9)


def test_a_leak_found_while_idle_costs_its_blocks_and_not_the_engine():
    # sgl-project/sglang#35270, #36081, #20010: "pool memory leak detected" ended an idle server
    engine = engine_with()
    engine.submit(request_of("a", 8))
    engine.run_until_idle()
    engine.core.scheduler.kv.ledger.take(1)
    engine.feed(Tick())
    assert [incident.num_blocks for incident in engine.incidents] == [1]
    engine.submit(request_of("b", 8))
    engine.run_until_idle()
    assert engine.finishes[RequestId("b")] in ENDED_WELL


def test_no_memory_for_a_chunk_of_a_prompt_only_delays_it():
    # sglang#26265, #26266: running out of memory in a prefill ended the server
    engine = engine_with(num_blocks=16)
    first = request_of("first", 8, max_tokens=40)
    second = request_of("second", 48, max_tokens=4)
    engine.submit(first)
    engine.submit(second)
    engine.run_until_idle()
    for request in (first, second):
        assert engine.finishes[request.id] in ENDED_WELL
        assert_as_alone(engine, request, 16)


def test_decoding_does_not_collapse_after_preemptions():
    # sglang#26248: 14 times fewer tokens a second after a retraction, for good
    engine = engine_with(num_blocks=14)
    for index in range(6):
        engine.submit(request_of(f"r{index}", 8, max_tokens=24))
    engine.run_until_idle()
    assert engine.reports[-1].preemptions_total > 0
    steps_before = len(engine.plans)
    for index in range(2):  # these fit together
        engine.submit(request_of(f"after{index}", 8, max_tokens=12))
    engine.run_until_idle()
    rows = [len(plan.rows) for plan in engine.plans[steps_before:]]
    assert sum(rows) / len(rows) > 1.8  # both decode in nearly every step


def test_no_client_can_keep_the_scheduler_busy_with_nothing():
    # sglang#36855: any client can livelock the scheduler, or fill its memory
    engine = engine_with(num_blocks=8, max_num_waiting=20)
    for index in range(200):  # each alone fits, no two do
        engine.submit(request_of(f"greedy{index}", 20, max_tokens=1000))
    assert len(engine.rejects) == 200 - 20 - len(engine.core.scheduler.running)
    assert {reject.code for reject in engine.rejects.values()} == {Overloaded.code}
    for index in range(0, 200, 2):
        engine.abort(RequestId(f"greedy{index}"))
    engine.submit(request_of("modest", 4, max_tokens=2, tenant="other"))
    engine.run_until_idle()
    assert engine.finishes[RequestId("modest")] in ENDED_WELL
    computed = engine.reports[-1].computed_tokens_total
    assert engine.reports[-1].recomputed_tokens_total <= computed / 2


# Scheduling


def test_a_long_prompt_does_not_keep_short_ones_waiting():
    # vllm#57413, #14003, #21495: a 128k prompt blocks all short ones, with memory to spare
    engine = engine_with(num_blocks=300)
    engine.submit(request_of("long", 1000, max_tokens=2))
    engine.finish_step()
    engine.submit(request_of("short", 8, max_tokens=2))
    assert finished_at(engine, "short") < 20
    assert RequestId("long") not in engine.finishes


def test_a_request_that_wants_most_of_the_cache_does_not_stall_everyone():
    # vllm#31731: one KV-hungry request preempts or stalls everyone
    engine = engine_with(num_blocks=32)
    hungry = request_of("hungry", 60, max_tokens=64)
    engine.submit(hungry)
    engine.finish_step()
    names = [f"small{i}" for i in range(12)]
    for name in names:
        engine.submit(request_of(name, 8, max_tokens=6))
    engine.run_until_idle()
    order = list(engine.finishes)
    assert order.index(hungry.id) > len(names) // 2
    assert set(engine.finishes.values()) <= ENDED_WELL


def test_one_that_does_not_fit_is_passed_by_those_that_do_a_bounded_number_of_times():
    # sglang#22831, #23152: admission broke off at the first that did not fit
    engine = engine_with(num_blocks=16)
    engine.submit(request_of("runs", 20, max_tokens=30))
    engine.finish_step()
    engine.submit(request_of("wide", 44, max_tokens=2))
    engine.submit(request_of("narrow", 4, max_tokens=2))
    assert finished_at(engine, "narrow") < finished_at(engine, "wide") + 10
    order = list(engine.finishes)
    assert order.index(RequestId("narrow")) < order.index(RequestId("wide"))


@pytest.mark.parametrize("order", list(Order))
def test_one_that_was_preempted_comes_back_before_those_that_came_later(order: Order):
    # vllm#41951, #51574: preempted requests lost their place
    engine = engine_with(num_blocks=9, order=order, max_passes=0)
    for index in range(6):
        engine.submit(request_of(f"r{index}", 8, max_tokens=16))
    engine.run_until_idle()
    assert engine.reports[-1].preemptions_total > 0
    started = [start.sequence for plan in engine.plans for start in plan.starts]
    put_back: set[int] = set()
    for plan in engine.plans:
        put_back |= {number for number in plan.ends if number in started}
        for start in plan.starts:
            started.remove(start.sequence)
            put_back.discard(start.sequence)
            assert all(number > start.sequence for number in put_back & set(started))


def test_the_queue_is_bounded_in_number_and_in_time():
    # vllm#2901, #13395, #16391, #18826: no way to bound the queue, or the time in it
    engine = engine_with(max_num_seqs=1, max_num_waiting=2)
    engine.submit(request_of("runs", 8, max_tokens=50))
    engine.submit(request_of("patient", 8))
    engine.submit(request_of("hurried", 8, deadline=engine.now + 0.01))
    engine.submit(request_of("one too many", 8))
    assert engine.rejects[RequestId("one too many")].code == Overloaded.code
    engine.run_until_idle()
    assert engine.finishes[RequestId("hurried")] is FinishReason.DEADLINE
    assert not engine.tokens[RequestId("hurried")]
    engine.submit(request_of("hopeless", 40, first_token_by=engine.now))
    assert engine.rejects[RequestId("hopeless")].code == DeadlineInfeasible.code


def test_with_more_wanted_than_memory_holds_little_is_computed_twice():
    # NVIDIA/TensorRT-LLM#16827, vllm#54644: throughput and pace break down with an oversubscribed
    # cache; #2866: reserving max_tokens for everyone serves one after the other
    engine = engine_with(num_blocks=40, max_num_seqs=16)
    for index in range(40):
        engine.submit(request_of(f"r{index}", 16, max_tokens=30))
    engine.run_until_idle()
    report = engine.reports[-1]
    assert set(engine.finishes.values()) <= ENDED_WELL
    assert report.recomputed_tokens_total < 0.25 * report.computed_tokens_total
    assert report.step < 40 * 30 / 3  # several at a time, all along


def test_a_huge_max_tokens_does_not_reserve_the_cache():
    # TensorRT-LLM#2866
    engine = engine_with(num_blocks=40)
    for index in range(4):
        engine.submit(request_of(f"r{index}", 8, max_tokens=100_000))
    engine.finish_step()
    engine.finish_step()
    assert len(engine.core.scheduler.running) == 4
