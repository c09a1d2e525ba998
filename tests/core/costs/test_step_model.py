"""The step-time model finds the coefficients of an executor from its steps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.costs.step_model import (
    MAX_SPREAD,
    StepCoefficients,
    StepLoad,
    StepModel,
    StepObservation,
    num_pairs,
)

TRUTH = StepCoefficients(0.02, 3e-4, 2e-3, 3e-6, 2e-7)


def mixed_steps(count: int, *, noise: float = 0.0, seed: int = 1) -> list[StepObservation]:
    rng = random.Random(seed)
    steps = []
    for _ in range(count):
        prefill, start = rng.choice([0, 0, 32, 128, 400]), rng.choice([0, 300, 2000])
        decodes = rng.randint(1, 64)
        load = StepLoad(prefill, decodes, decodes * rng.randint(50, 900), num_pairs(start, prefill))
        steps.append(StepObservation(load, TRUTH.of(load) * rng.gauss(1, noise)))
    return steps


def test_mixed_steps_tell_every_coefficient():
    model = StepModel()
    for load, seconds in mixed_steps(400):
        model.observe(load, seconds)
    assert model.coefficients == pytest.approx(TRUTH, rel=0.03)
    assert model.error is not None
    assert model.error < 0.01


def test_noise_averages_out():
    model = StepModel(calibration=mixed_steps(1000, noise=0.1))
    for load, _ in mixed_steps(50, seed=2):
        assert model.seconds(load) == pytest.approx(TRUTH.of(load), rel=0.06)


def test_calibration_counts_and_has_no_error_of_its_own():
    model = StepModel(calibration=mixed_steps(20))
    assert model.error is None
    assert model.seconds(StepLoad(prefill=128, pairs=num_pairs(0, 128))) == pytest.approx(
        TRUTH.of(StepLoad(prefill=128, pairs=num_pairs(0, 128))), rel=0.2
    )


def test_an_hour_of_decodes_does_not_make_it_forget_what_a_prompt_costs():
    model = StepModel(calibration=mixed_steps(300))
    load = StepLoad(decodes=32, context=8000)
    for _ in range(5000):
        model.observe(load, TRUTH.of(load))
    assert model.seconds(load) == pytest.approx(TRUTH.of(load), rel=0.01)
    assert model.coefficients.prefill_token == pytest.approx(TRUTH.prefill_token, rel=0.1)


def test_it_follows_a_device_that_becomes_slower():
    model = StepModel(calibration=mixed_steps(300))
    for load, seconds in mixed_steps(600, seed=3):
        model.observe(load, 2 * seconds)
    load = StepLoad(128, 16, 4000, num_pairs(0, 128))
    assert model.seconds(load) == pytest.approx(2 * TRUTH.of(load), rel=0.1)


def test_nine_of_ten_steps_keep_the_spread():
    model = StepModel(calibration=mixed_steps(300))
    rng = random.Random(5)
    kept = []
    for load, seconds in mixed_steps(3000, seed=6):
        slow = seconds * (1.25 if rng.random() < 0.3 else 0.9)
        kept.append(slow <= model.spread * model.seconds(load))
        model.observe(load, slow)
    assert 0.85 < sum(kept[300:]) / len(kept[300:]) < 0.95


def test_steps_as_predicted_have_no_spread_and_one_hiccup_makes_little():
    model = StepModel(TRUTH)
    load = StepLoad(decodes=16, context=4000)
    for _ in range(200):
        model.observe(load, TRUTH.of(load))
    assert model.spread == 1.0
    model.observe(load, 50 * TRUTH.of(load))
    assert model.spread < 1.02
    for _ in range(500):
        model.observe(load, 50 * TRUTH.of(load))
        assert model.spread <= MAX_SPREAD


def test_one_hiccup_hardly_matters():
    model = StepModel(calibration=mixed_steps(300))
    load = StepLoad(decodes=16, context=4000)
    model.observe(load, 50 * TRUTH.of(load))
    for each, seconds in mixed_steps(8, seed=4):
        model.observe(each, seconds)
    assert model.seconds(load) == pytest.approx(TRUTH.of(load), rel=0.1)


@given(
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 256), st.floats(0, 10)),
        min_size=1,
        max_size=60,
    )
)
def test_no_coefficient_is_ever_negative(steps: list[tuple[int, int, float]]):
    model = StepModel()
    for prefill, decodes, seconds in steps:
        model.observe(StepLoad(prefill, decodes, 100 * decodes, num_pairs(0, prefill)), seconds)
        assert min(model.coefficients) >= 0


@given(st.floats(1e-4, 10), st.integers(0, 200_000))
def test_a_chunk_fits_the_time_it_was_made_for_and_one_token_more_does_not(
    seconds: float, start: int
):
    model = StepModel(TRUTH)
    num_tokens = model.prefill_within(seconds, start)
    assert model.recompute_seconds(num_tokens, start) <= seconds * (1 + 1e-9)
    assert model.recompute_seconds(num_tokens + 2, start) > seconds
