"""What the scheduler decides, seen in its plans. Whole schedules: tests/golden."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.preemption import Preemption
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec, undisturbed
from headrace.types import FinishReason, Request, RequestId, SequenceId

if TYPE_CHECKING:
    from headrace.core.scheduler.plan import StepPlan
    from headrace.testing.harness import EngineHarness


def request_of(name: str, *prompt: int, max_tokens: int = 4, stop: tuple[int, ...] = ()) -> Request:
    return Request(
        id=RequestId(name),
        prompt=prompt,
        max_tokens=max_tokens,
        stop_token_ids=stop,
        sampling=GREEDY,
    )


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    """(sequence, first position, tokens) of each row."""
    return [(row.sequence, row.start, row.num_tokens) for row in plan.rows]


def computed(engine: EngineHarness) -> int:
    return sum(plan.num_tokens for plan in engine.plans)


def test_decodes_come_first_then_chunks_then_newcomers_in_order_of_arrival():
    engine = simulated_engine(
        config=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=10, order=Order.ARRIVAL)
    )
    engine.submit(request_of("decodes", 1, 2))
    engine.finish_step()
    engine.submit(request_of("long", *range(100, 120)))
    engine.submit(request_of("late", 7))
    engine.finish_step()
    assert shape(engine.plans[-1]) == [(0, 3, 1), (1, 0, 8), (2, 0, 1)]
    engine.finish_step()
    assert shape(engine.plans[-1]) == [(0, 4, 1), (2, 1, 1), (1, 8, 8)]


def test_chunks_end_at_a_blocks_border_unless_the_prompt_does():
    engine = simulated_engine(config=SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=6))
    engine.submit(request_of("long", *range(14)))
    engine.run_until_idle()
    assert [shape(plan)[0][1:] for plan in engine.plans[:3]] == [(0, 4), (4, 4), (8, 6)]


def test_a_budget_below_the_block_size_still_makes_progress():
    spec = simulated_spec(block_size=16)
    engine = simulated_engine(spec, SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=3))
    engine.submit(request_of("long", *range(20)))
    engine.run_until_idle()
    assert engine.finishes[RequestId("long")] is FinishReason.LENGTH


def test_a_group_that_arrives_together_computes_its_prefix_once():
    engine = simulated_engine(config=SchedulerConfig(max_num_batched_tokens=64))
    prefix = range(40)
    for member in range(5):
        engine.submit(request_of(f"r{member}", *prefix, 100 + member, max_tokens=1))
    engine.run_until_idle()
    assert computed(engine) == 41 + 4 * 1
    assert [o[0].cached_tokens for o in engine.outputs.values()] == [0, 40, 40, 40, 40]


def test_a_group_shares_the_part_of_a_block_that_it_has_in_common():
    spec = simulated_spec(block_size=16)
    engine = simulated_engine(spec)
    for member in range(3):
        engine.submit(request_of(f"r{member}", *range(28), *[100 + member] * 4, max_tokens=1))
    engine.run_until_idle()
    assert [o[0].cached_tokens for o in engine.outputs.values()] == [0, 28, 28]
    assert computed(engine) == 32 + 2 * 4


def test_without_copies_only_whole_blocks_are_shared():
    engine = simulated_engine(simulated_spec(block_size=16), SchedulerConfig(share_partial=False))
    for member in range(2):
        engine.submit(request_of(f"r{member}", *range(28), *[100 + member] * 4, max_tokens=1))
    engine.run_until_idle()
    assert engine.outputs[RequestId("r1")][0].cached_tokens == 16
    assert not any(plan.copies for plan in engine.plans)


def test_those_who_wait_for_content_go_on_when_its_maker_is_aborted():
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=8)
    engine = simulated_engine(config=config)
    engine.submit(request_of("maker", *range(40), 100))
    engine.submit(request_of("waiter", *range(40), 101))
    engine.finish_step()
    assert [row.sequence for row in engine.plans[-1].rows] == [0]
    engine.abort(RequestId("maker"))
    engine.run_until_idle()
    assert engine.finishes[RequestId("waiter")] is FinishReason.LENGTH
    assert engine.outputs[RequestId("waiter")][0].cached_tokens == 8  # what was published
    assert computed(engine) == 8 + 8 + (41 - 8) + 3


def test_another_turn_of_a_conversation_finds_prompt_and_output():
    engine = simulated_engine()
    engine.submit(request_of("turn1", *range(10), max_tokens=7))
    engine.run_until_idle()
    history = (*range(10), *engine.tokens[RequestId("turn1")])
    engine.submit(request_of("turn2", *history, 5, 6))
    engine.run_until_idle()
    assert engine.outputs[RequestId("turn2")][0].cached_tokens == 16


def test_the_newest_is_preempted_and_its_stream_does_not_notice():
    spec = simulated_spec(num_blocks=6)
    engine = simulated_engine(spec)
    requests = [request_of(f"r{i}", *range(i * 50, i * 50 + 7), max_tokens=12) for i in range(2)]
    for request in requests:
        engine.submit(request)
    engine.run_until_idle()
    assert engine.reports[-1].preemptions_total == 1
    starts = [start.sequence for plan in engine.plans for start in plan.starts]
    assert starts == [0, 1, 1]
    for request in requests:
        assert tuple(engine.tokens[request.id]) == undisturbed(request, spec).tokens


def test_a_preempted_sequence_finds_what_nobody_needed_in_the_cache():
    config = SchedulerConfig(preemption=Preemption.LAST_IN)
    engine = simulated_engine(simulated_spec(num_blocks=7), config)
    engine.submit(request_of("old", *range(100, 108), max_tokens=6))
    engine.submit(request_of("new", *range(12), max_tokens=10))
    engine.run_until_idle()
    again = [p for p in engine.plans if any(s.sequence == 1 for s in p.starts)][-1]
    resumed = next(row for row in again.rows if row.sequence == 1)
    assert engine.reports[-1].preemptions_total == 1
    assert resumed.start == 12


def test_small_requests_pass_a_big_one_that_does_not_fit_and_it_is_not_starved():
    config = SchedulerConfig(max_passes=3, max_num_seqs=8, order=Order.ARRIVAL)
    engine = simulated_engine(simulated_spec(num_blocks=12), config)
    engine.submit(request_of("runs", *range(16), max_tokens=20))
    engine.submit(request_of("big", *range(500, 540), max_tokens=2))
    order: list[str] = []
    for i in range(12):
        engine.submit(request_of(f"small{i}", 900 + i, max_tokens=6))
        engine.finish_step()
    engine.run_until_idle()
    for plan in engine.plans:
        order.extend(
            "big" if len(start.prompt) == 40 else "small"
            for start in plan.starts
            if len(start.prompt) != 16
        )
    assert order.index("big") == 3  # passed by exactly max_passes
    assert len(engine.finishes) == 14


def test_a_hog_does_not_block_small_requests():
    engine = simulated_engine(simulated_spec(num_blocks=12))
    engine.submit(request_of("runs", *range(20), max_tokens=12))
    engine.submit(request_of("hog", *range(500, 540), max_tokens=2))
    engine.submit(request_of("small", 7, max_tokens=2))
    for _ in range(3):
        engine.finish_step()
    assert RequestId("small") in engine.finishes
    assert RequestId("hog") not in engine.tokens
    engine.run_until_idle()
    assert engine.finishes[RequestId("hog")] is FinishReason.LENGTH


def test_max_passes_0_is_strictly_first_come_first_served():
    config = SchedulerConfig(max_passes=0, order=Order.ARRIVAL)
    engine = simulated_engine(simulated_spec(num_blocks=12), config)
    engine.submit(request_of("runs", *range(20), max_tokens=12))
    engine.submit(request_of("hog", *range(500, 540), max_tokens=2))
    engine.submit(request_of("small", 7, max_tokens=2))
    engine.run_until_idle()
    starts = [len(start.prompt) for plan in engine.plans for start in plan.starts]
    assert starts == [20, 40, 1]


def test_what_is_promised_to_a_prefill_under_way_is_given_to_nobody_else():
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=10)  # two blocks and a bit
    engine = simulated_engine(simulated_spec(num_blocks=12), config)
    engine.submit(request_of("long", *range(40), max_tokens=2))
    engine.submit(request_of("late", *range(50, 74), max_tokens=2))
    engine.run_until_idle()
    assert [plan.step_id for plan in engine.plans if plan.starts] == [0, 6]  # one after the other
    assert engine.reports[-1].preemptions_total == 0


def test_no_more_than_max_num_seqs_run():
    engine = simulated_engine(config=SchedulerConfig(max_num_seqs=3))
    for i in range(8):
        engine.submit(request_of(f"r{i}", i))
    engine.run_until_idle()
    assert max(len(plan.rows) for plan in engine.plans) == 3
    assert len(engine.finishes) == 8


def test_an_aborted_sequence_is_planned_no_more():
    engine = simulated_engine()
    engine.submit(request_of("goes", 1, max_tokens=20))
    engine.submit(request_of("stays", 2, max_tokens=20))
    engine.finish_step()
    engine.abort(RequestId("goes"))
    planned = len(engine.plans)
    engine.run_until_idle()
    assert all(SequenceId(0) not in [r.sequence for r in p.rows] for p in engine.plans[planned:])
    assert engine.plans[planned].ends == (0,)
    assert engine.finishes[RequestId("goes")] is FinishReason.ABORT


def test_blocks_of_an_aborted_sequence_are_in_flight_until_its_step_is_done():
    engine = simulated_engine(simulated_spec(num_blocks=8))
    engine.submit(request_of("goes", *range(8)))
    engine.abort(RequestId("goes"))
    counts = engine.core.scheduler.kv.counts()
    assert (counts.free, counts.leaving) == (6, 2)
    engine.finish_step()
    counts = engine.core.scheduler.kv.counts()
    assert (counts.free, counts.cached, counts.leaving) == (8, 0, 0)


def test_two_steps_in_flight_feed_a_token_that_is_not_known_yet():
    engine = simulated_engine(config=SchedulerConfig(max_steps_in_flight=2))
    engine.submit(request_of("r", 1, 2, 3, max_tokens=3))
    assert engine.num_in_flight == 2
    assert engine.plans[1].rows[0].tokens is None
    engine.run_until_idle()
    assert len(engine.plans) == 3  # never beyond max_tokens
    assert engine.reports[-1].discarded_tokens_total == 0


def test_a_row_in_flight_behind_a_stop_token_is_discarded_and_counted():
    spec = simulated_spec()
    plain = undisturbed(request_of("r", 1, 2, 3, max_tokens=8), spec)
    engine = simulated_engine(spec, SchedulerConfig(max_steps_in_flight=2))
    engine.submit(request_of("r", 1, 2, 3, max_tokens=8, stop=(plain.tokens[2],)))
    engine.run_until_idle()
    assert tuple(engine.tokens[RequestId("r")]) == plain.tokens[:3]
    assert engine.finishes[RequestId("r")] is FinishReason.STOP
    assert engine.reports[-1].discarded_tokens_total == 1
    assert engine.reports[-1].output_tokens_total == 3


@pytest.mark.parametrize("depth", [1, 2])
def test_nothing_is_planned_beyond_the_context(depth: int):
    spec = simulated_spec(max_model_len=10)
    engine = simulated_engine(spec, SchedulerConfig(max_steps_in_flight=depth))
    engine.submit(request_of("r", *range(6), max_tokens=50))
    engine.run_until_idle()
    assert len(engine.tokens[RequestId("r")]) == 4
    assert engine.finishes[RequestId("r")] is FinishReason.LENGTH
    assert max(row.start + row.num_tokens for p in engine.plans for row in p.rows) == 9


def test_a_sequence_that_fills_the_whole_cache_ends_with_length():
    engine = simulated_engine(simulated_spec(num_blocks=3))
    engine.submit(request_of("r", *range(6), max_tokens=50))
    engine.run_until_idle()
    assert len(engine.tokens[RequestId("r")]) == 6
    assert engine.finishes[RequestId("r")] is FinishReason.LENGTH
