"""Step sizes follow from inter-token targets; nothing is left idle that somebody could use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import merged, poisson, rehearsal, request_of

from headrace.core.costs.step_model import StepCoefficients, StepLoad, StepModel
from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.pacing import AIM, MIN_CHUNK, UNLIMITED, Pace
from headrace.core.scheduler.step import Step
from headrace.types import PriorityClass, RequestId, StepId

if TYPE_CHECKING:
    from headrace.core.scheduler.plan import StepPlan

COSTS = StepCoefficients(0.01, 1e-3, 2e-3, 0.0, 0.0)  # exact arithmetic: no attention
PACE = Pace(StepModel(COSTS), itl=0.1, batch_itl=0.4)


def step_of(decodes: int = 0, budget: int = 512) -> Step:
    return Step(StepId(0), budget, num_decodes=decodes)


def test_a_request_has_its_own_target_or_that_of_its_class():
    assert PACE.target(0.05, yields=True) == 0.05
    assert PACE.target(None, yields=False) == 0.1
    assert PACE.target(None, yields=True) == 0.4
    assert Pace(StepModel(COSTS)).target(None, yields=True) == UNLIMITED


def test_a_chunk_fills_what_the_target_leaves():
    step = step_of(decodes=10)  # 10 + 20 ms
    PACE.begin(step, 0.1)
    assert PACE.chunk(step, 0) == int((AIM * 0.1 - 0.03) / 1e-3 + 1e-6)
    PACE.add_chunk(step, 0, PACE.chunk(step, 0))
    assert PACE.chunk(step, 0) == 0
    assert PACE.predicted(step) == pytest.approx(AIM * 0.1)


def test_where_steps_spread_they_are_planned_shorter():
    pace = Pace(StepModel(COSTS))
    pace.model.spread = 1.25
    step = step_of(decodes=10)
    pace.begin(step, 0.1)
    pace.add_chunk(step, 0, pace.chunk(step, 0))
    assert pace.predicted(step) == pytest.approx(0.08)


def test_without_a_target_only_the_budget_counts():
    step = step_of(decodes=10)
    PACE.begin(step, UNLIMITED)
    assert PACE.chunk(step, 0) == 512


def test_decodes_that_come_near_the_target_leave_nothing():
    step = step_of(decodes=43)  # 96 ms of 100
    PACE.begin(step, 0.1)
    assert PACE.chunk(step, 0) == 0


def test_if_decodes_alone_miss_the_target_prompts_go_on_all_the_same():
    step = step_of(decodes=60)
    PACE.begin(step, 0.1)
    assert PACE.chunk(step, 0) == MIN_CHUNK
    PACE.add_chunk(step, 0, MIN_CHUNK)
    assert PACE.chunk(step, 0) == 0  # once a step


def test_a_decode_that_gives_way_fits_or_waits_but_is_not_kept_from_an_empty_step():
    step = step_of(decodes=41)  # 92 ms: one more fits
    PACE.begin(step, 0.1)
    step.rows = [None]  # type: ignore[list-item]
    assert PACE.may_decode(step, 0)
    assert not PACE.may_decode(step, 0)
    empty = step_of()
    PACE.begin(empty, 0.001)
    assert PACE.may_decode(empty, 0)


@settings(max_examples=15, deadline=None)
@given(
    itl=st.sampled_from([0.02, 0.05, 0.15]),
    depth=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
    long=st.integers(0, 3000),
)
def test_a_step_is_predicted_within_every_target_that_its_decodes_alone_would_keep(
    itl: float, depth: int, seed: int, long: int
):
    broken: list[tuple[float, float]] = []

    def watch(_now: float, _plan: StepPlan) -> None:
        scheduler = played.core.scheduler
        step, model = scheduler.in_flight[-1], scheduler.pace.model
        decoding = [
            s.target
            for s, row in zip(step.sequences, step.rows, strict=True)
            if row.num_tokens == 1 and row.samples and row.start >= len(s.request.prompt)
        ]
        target = min(decoding, default=UNLIMITED)
        decodes = StepLoad(decodes=step.num_decodes, context=step.context)
        predicted = model.seconds(step.load())
        if model.seconds(decodes) <= target < predicted - 1e-9:
            broken.append((target, predicted))

    def make(index: int, rng: object, _now: float):
        priority = PriorityClass.BATCH if index % 3 == 0 else PriorityClass.STANDARD
        return request_of(f"r{index}", 40 + index * 13 % 200, 24, priority=priority)

    load = merged(
        poisson(6.0, 6, make, seed=seed), [(1.0, request_of("long", long + 1, 4, itl=itl / 2))]
    )
    config = SchedulerConfig(
        max_num_seqs=16, itl=itl, batch_itl=itl, max_steps_in_flight=depth, fair=False
    )
    played = rehearsal(config, watch=watch)
    played.play(load)
    assert all(story.finish for story in played.stories.values())
    assert not broken


def test_a_target_below_any_step_does_not_stop_anybody():
    load = [(0.0, request_of("tight", 16, 100, itl=1e-6))]
    load += [
        (0.1, request_of(f"r{i}", 300, 8, priority=each)) for i, each in enumerate(PriorityClass)
    ]
    played = rehearsal(SchedulerConfig(max_num_seqs=8))
    played.play(load)
    assert all(story.finish for story in played.stories.values())


def test_a_batch_class_beside_a_target_below_any_step_gets_what_it_is_owed():
    def tight(index: int, _rng: object, _now: float):
        return request_of(f"t{index}", 8, 64, itl=1e-6, priority=PriorityClass.INTERACTIVE)

    batch = (0.0, request_of("batch", 64, 32, priority=PriorityClass.BATCH))
    played = rehearsal(SchedulerConfig(max_num_seqs=16))
    played.play(merged(poisson(6.0, 60, tight), [batch]), until=60)
    assert played.stories[RequestId("batch")].finish


def test_a_chunk_far_into_a_prompt_may_be_too_long_where_one_at_its_start_is_not():
    """What a newcomer finds cached decides whether there is time for it."""
    prefix = list(range(256)) * 24
    load = [
        (0.0, request_of("first", [*prefix, 1], 1)),
        (8.0, request_of("decodes", 16, 200, itl=0.011)),
        (8.1, request_of("cached", [*prefix, *range(40)], 4)),
        (8.1, request_of("again", [*prefix, *range(50, 90)], 4)),
    ]
    played = rehearsal(SchedulerConfig(max_num_seqs=8))
    played.play(load)
    assert all(story.finish for story in played.stories.values())


@pytest.mark.parametrize("order", Order)
def test_no_step_is_short_while_a_prompt_could_use_the_rest(order: Order):
    idle: list[int] = []

    def watch(_now: float, plan: StepPlan) -> None:
        scheduler = played.core.scheduler
        lacking = [s for s in scheduler.running if s.num_missing > 1]
        if lacking and not scheduler.waiting.num_tokens:
            idle.append(64 - plan.num_tokens)

    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, order=order)
    played = rehearsal(config, watch=watch)
    played.play([(0.05 * i, request_of(f"r{i}", 50 + 77 * i % 300, 8)) for i in range(20)])
    assert idle
    assert max(idle) < 16  # a chunk that does not end its prompt ends at a block's border
