"""Who goes first: classes, latest starts, long prompts, and what a class is owed."""

from __future__ import annotations

import pytest
from playing import merged, num_tokens, of_class, poisson, quantile, rehearsal, request_of

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.order import (
    DUE_AFTER,
    MOST_OWED,
    OWED_SHARE,
    STRETCH,
    TURN,
    Order,
    Patience,
    latest_start,
    rank_of,
)
from headrace.types import PriorityClass, RequestId

ALL_WANT = (True, True, True)


def start(work: float, now: float = 10.0, order: Order = Order.DUE, **targets: float) -> float:
    return latest_start(request_of("r", **targets), order, now=now, work=work)


def test_classes_are_ranked_and_arrival_order_knows_none():
    requests = [request_of("r", priority=each) for each in PriorityClass]
    assert [rank_of(each, Order.DUE) for each in requests] == [0, 1, 2]
    assert {rank_of(each, Order.ARRIVAL) for each in requests} == {1}


def test_a_target_minus_the_work_is_the_latest_start():
    assert start(0.5, first_token_by=12.0) == 11.5


def test_a_target_for_the_first_token_goes_before_a_deadline():
    assert start(0.5, first_token_by=12.0, deadline=11.0) == 11.5


def test_a_near_deadline_counts_as_a_target_and_a_far_one_does_not():
    assert start(0.5, deadline=11.0) == 10.5
    assert start(0.5, deadline=1000.0) == start(0.5)


def test_short_prompts_pass_a_long_one_until_its_patience_is_over():
    long = start(2.0, now=0.0)
    patience = long - start(0.01, now=0.0)
    assert start(0.01, now=patience - 0.1) < long < start(0.01, now=patience + 0.1)
    assert patience == pytest.approx((STRETCH - 1) * 1.99)
    assert start(0.0, now=0.0) == DUE_AFTER


def test_in_order_of_arrival_all_starts_are_alike():
    assert start(2.0, order=Order.ARRIVAL) == start(0.0, now=99, order=Order.ARRIVAL)


def steps_until_turn(patience: Patience, rank: int, seconds: float = 0.1) -> int:
    for count in range(100_000):
        if patience.has_turn(rank):
            return count
        patience.note(wants=ALL_WANT, got=[seconds, 0.0, 0.0], seconds=seconds)
    raise AssertionError("its turn never comes")


def test_a_class_that_gets_nothing_has_its_turn_when_a_whole_one_is_owed():
    patience = Patience()
    assert patience.ranks() == [0, 1, 2]
    assert steps_until_turn(patience, 2) == pytest.approx(TURN / OWED_SHARE / 0.1, abs=1)
    assert patience.ranks() == [1, 2, 0]  # both were passed over


def test_a_turn_lasts_until_all_that_is_owed_was_got():
    patience = Patience()
    steps_until_turn(patience, 2)
    got = 0.0
    while patience.has_turn(2):
        patience.note(wants=ALL_WANT, got=[0.0, 0.08, 0.02], seconds=0.1)
        got += 0.02
    assert got == pytest.approx(TURN / (1 - OWED_SHARE * 0.1 / 0.02), rel=0.1)


def test_a_class_that_gets_its_share_anyway_is_owed_nothing():
    patience = Patience()
    for _ in range(10_000):
        patience.note(wants=ALL_WANT, got=[0.08, 0.01, 0.01], seconds=0.1)
    assert patience.ranks() == [0, 1, 2]


def test_a_class_without_work_is_owed_nothing():
    patience = Patience()
    steps_until_turn(patience, 2)
    patience.note(wants=(True, True, False), got=[0.1, 0.0, 0.0], seconds=0.1)
    assert not patience.has_turn(2)


def test_what_is_owed_is_bounded():
    patience = Patience()
    for _ in range(100_000):
        patience.note(wants=ALL_WANT, got=[0.1, 0.0, 0.0], seconds=0.1)
    count = 0
    while patience.has_turn(2):
        patience.note(wants=ALL_WANT, got=[0.0, 0.0, 0.1], seconds=0.1)
        count += 1
    assert count * 0.1 <= MOST_OWED * TURN / (1 - OWED_SHARE) + 0.1


def long_beside_short(rate: float, order: Order, *, with_long: bool) -> list[float]:
    """Times to first tokens: of the short ones, and (last) of a prompt of 16,000 tokens."""
    short = poisson(rate, 60, lambda i, _r, _n: request_of(f"short{i}", 96, 16), seed=2)
    long = [(5.0, request_of("long", 16_000, 4))] if with_long else []
    played = rehearsal(SchedulerConfig(max_num_seqs=32, itl=0.15, order=order))
    played.play(merged(short, long))
    stories = played.stories
    times = [s.ttft for s in stories.values() if s.request.id != "long"]
    return [*times, stories[RequestId("long")].ttft] if with_long else times


def test_a_long_prompt_does_not_block_short_ones_and_is_not_starved():
    """vLLM issues 14003, 21495, 57413: everybody waited behind one prompt's chunks."""
    alone = quantile(long_beside_short(4.0, Order.DUE, with_long=False), 0.95)
    *short, long = long_beside_short(4.0, Order.DUE, with_long=True)
    *blocked, quick = long_beside_short(4.0, Order.ARRIVAL, with_long=True)
    assert quantile(short, 0.95) <= alone + 0.2
    assert quantile(blocked, 0.95) > 3.0  # what it is about
    assert long <= 4 * quick


def test_a_long_prompt_is_served_under_an_overload_of_short_ones():
    short = poisson(12.0, 60, lambda i, _r, _n: request_of(f"short{i}", 96, 16))
    played = rehearsal(SchedulerConfig(max_num_seqs=32, itl=0.15))
    played.play(merged(short, [(5.0, request_of("long", 4_000, 4))]), until=60)
    work = 4_000 * 7e-4
    assert played.stories[RequestId("long")].ttft <= DUE_AFTER + (STRETCH + 4) * work


OVERLOAD = [(0.0, request_of(f"o{i}", 256, 64)) for i in range(300)]
BATCH = [(0.0, request_of(f"b{i}", 256, 64, priority=PriorityClass.BATCH)) for i in range(40)]


@pytest.mark.parametrize("depth", [1, 2])
def test_the_batch_class_gets_what_it_is_owed_under_an_overload_of_better_ones(depth: int):
    config = SchedulerConfig(max_num_seqs=16, itl=0.15, max_steps_in_flight=depth)
    played = rehearsal(config)
    played.play(merged(OVERLOAD, BATCH), until=100)
    batch = num_tokens(of_class(played, PriorityClass.BATCH))
    better = num_tokens(of_class(played, PriorityClass.STANDARD))
    assert 0.5 * OWED_SHARE <= batch / (batch + better) <= 2 * OWED_SHARE


def test_the_batch_class_is_not_starved_where_memory_is_short():
    played = rehearsal(SchedulerConfig(max_num_seqs=16, itl=0.15), num_blocks=128)
    played.play(merged(OVERLOAD, BATCH), until=60)
    assert num_tokens(of_class(played, PriorityClass.BATCH)) > 64


@pytest.mark.parametrize("depth", [1, 2])
def test_an_interactive_load_does_not_feel_a_saturating_batch_load(depth: int):
    def make(index: int, _rng: object, _now: float):
        return request_of(f"i{index}", 128, 64, priority=PriorityClass.INTERACTIVE)

    interactive = poisson(1.4, 60, make)  # 30 % of what the engine can do
    batch = [(0.0, request_of(f"b{i}", 256, 128, priority=PriorityClass.BATCH)) for i in range(150)]
    played = []
    for load in (interactive, batch, merged(interactive, batch)):
        config = SchedulerConfig(
            max_num_seqs=32, itl=0.15, batch_itl=0.3, max_steps_in_flight=depth
        )
        engine = rehearsal(config)
        engine.play(load, until=60)
        played.append(engine)
    alone, only_batch, both = played
    before = of_class(alone, PriorityClass.INTERACTIVE)
    after = [s for s in of_class(both, PriorityClass.INTERACTIVE) if s.finish]
    planned_step = 0.3
    assert quantile((s.ttft for s in after), 0.95) <= depth * planned_step + quantile(
        (s.ttft for s in before), 0.95
    )
    good = [s.ttft <= 1.0 and quantile(s.gaps, 0.95) <= 0.15 for s in after]
    assert sum(good) >= 0.98 * len(good)
    left = 0.7 * num_tokens(of_class(only_batch, PriorityClass.BATCH))
    assert num_tokens(of_class(both, PriorityClass.BATCH)) >= 0.9 * left


def test_a_batch_request_that_was_passed_too_often_bars_no_better_one_even_in_its_turn():
    config = SchedulerConfig(max_num_seqs=8, max_passes=0)
    played = rehearsal(config, num_blocks=32)
    batch, interactive = PriorityClass.BATCH, PriorityClass.INTERACTIVE
    patience = played.core.scheduler._ledger.patience
    played.play(
        [(0.0, request_of("runs", 128, 120)), (0.01, request_of("big", 400, 4, priority=batch))],
        until=0.5,
    )
    for _ in range(1000):
        patience.note(wants=ALL_WANT, got=[0.1, 0.1, 0.0], seconds=0.1)
    assert patience.ranks()[0] == 2
    played.play([(0.5, request_of("quick", 64, 4, priority=interactive))], until=1.0)
    assert played.stories[RequestId("quick")].finish
    assert not played.stories[RequestId("big")].times


def test_a_batch_request_that_does_not_fit_bars_no_better_one():
    config = SchedulerConfig(max_num_seqs=8, max_passes=0)
    played = rehearsal(config, num_blocks=32)
    batch = PriorityClass.BATCH
    load = [
        (0.0, request_of("runs", 128, 120)),
        (0.01, request_of("big", 400, 4, priority=batch)),
        (0.5, request_of("quick", 64, 4, priority=PriorityClass.INTERACTIVE)),
    ]
    played.play(load)
    stories = {str(s.request.id): s for s in played.stories.values()}
    assert stories["quick"].ttft < 0.2
    assert stories["big"].times[0] > stories["runs"].times[-1]
