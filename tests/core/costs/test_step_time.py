"""The fit of step times, against engines whose costs are known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.costs.step_time import (
    PRIOR,
    StepCosts,
    StepTimeModel,
    StepTimes,
    least_squares,
    solve,
)
from headrace.types import ReplicaId, ReportLoad

R0, R1 = ReplicaId("r0"), ReplicaId("r1")

costs = st.builds(
    StepCosts,
    step=st.floats(1e-4, 0.1),
    prefill_token=st.floats(1e-6, 1e-2),
    output_token=st.floats(1e-6, 1e-2),
)
reports = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 4000), st.integers(0, 400)),
    min_size=60,
    max_size=120,
)


def learn(model: StepTimeModel, truth: StepCosts, seen: list[tuple[int, int, int]]) -> None:
    for steps, prefill, outputs in seen:
        seconds = truth.seconds(steps=steps, prefill=prefill, outputs=outputs)
        model.observe(steps=steps, prefill=prefill, outputs=outputs, seconds=seconds, prior=PRIOR)


@settings(max_examples=60, deadline=None)
@given(truth=costs, seen=reports)
def test_what_was_seen_is_predicted(truth: StepCosts, seen: list[tuple[int, int, int]]) -> None:
    model = StepTimeModel()
    learn(model, truth, seen)
    steps, prefill, outputs = (sum(column) for column in zip(*seen[-40:], strict=True))
    predicted = model.costs.seconds(steps=steps, prefill=prefill, outputs=outputs)
    right = truth.seconds(steps=steps, prefill=prefill, outputs=outputs)
    assert predicted == pytest.approx(right, rel=0.15)


@settings(max_examples=60, deadline=None)
@given(
    seen=st.lists(
        st.tuples(
            st.integers(1, 50), st.integers(0, 4000), st.integers(0, 400), st.floats(0.0, 9.0)
        ),
        max_size=60,
    )
)
def test_costs_are_never_negative(seen: list[tuple[int, int, int, float]]) -> None:
    model = StepTimeModel()
    for steps, prefill, outputs, seconds in seen:
        model.observe(steps=steps, prefill=prefill, outputs=outputs, seconds=seconds, prior=PRIOR)
        assert min(model.costs) >= 0.0


def mixed_load(length: int) -> list[tuple[int, int, int]]:
    return [(10, 37 * index % 3000, 11 * index % 300) for index in range(length)]


def test_all_three_costs_are_found_where_the_load_is_mixed() -> None:
    truth = StepCosts(0.03, 4e-4, 2e-3)
    model = StepTimeModel()
    learn(model, truth, mixed_load(200))
    assert model.costs == pytest.approx(truth, rel=0.02)
    assert model.error is not None
    assert model.error < 0.02


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    model = StepTimeModel()
    learn(model, StepCosts(0.01, 1e-4, 1e-3), mixed_load(200))
    truth = StepCosts(0.02, 2e-4, 2e-3)
    learn(model, truth, mixed_load(10))
    assert model.error is not None
    assert model.error > 0.1
    learn(model, truth, mixed_load(200))
    assert model.costs == pytest.approx(truth, rel=0.05)


def report(step: int, seconds: float, computed: int = 0, output: int = 0) -> ReportLoad:
    return ReportLoad(
        step=step,
        running=1,
        waiting=0,
        waiting_tokens=0,
        kv_blocks_total=1,
        kv_blocks_free=1,
        kv_blocks_cached=0,
        prompt_tokens_total=0,
        cached_tokens_total=0,
        output_tokens_total=output,
        discarded_tokens_total=0,
        preemptions_total=0,
        step_seconds_total=seconds,
        computed_tokens_total=computed,
    )


def test_a_new_replica_begins_with_what_the_pool_knows() -> None:
    times = StepTimes()
    last = report(0, 0.0)
    for index in range(1, 300):
        new = report(10 * index, 0.5 * index, output=40 * index)
        times.observe(R0, last, new)
        last = new
    other = times.observe(R1, report(0, 0.0), report(0, 0.0))
    assert other == times.pool
    assert other.of_step(0, 4) == pytest.approx(0.05, rel=0.02)
    assert times.error(R1) is None


def test_reports_that_go_backwards_are_another_life() -> None:
    times = StepTimes()
    assert times.observe(R0, report(10, 1.0, 5, 5), report(20, 0.5, 5, 5)) == PRIOR
    assert times.observe(R0, report(10, 1.0, 5, 5), report(10, 1.5, 5, 5)) == PRIOR


def test_a_system_of_equations_is_solved() -> None:
    assert solve([[4.0, 1.0], [1.0, 3.0]], [9.0, 5.0]) == pytest.approx([2.0, 1.0])


def test_a_coefficient_that_would_be_negative_is_zero() -> None:
    assert least_squares([[2.0, 1.0], [1.0, 2.0]], [3.0, 0.5]) == pytest.approx([1.5, 0.0])
