"""The sampling rule against a naive float64 reading of its own docstring."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.executor import sampling as rule
from headrace.executor.philox import uniforms
from headrace.executor.sampling import Penalised, SamplingFailed
from headrace.types import SamplingParams


def naive_kept(logits: np.ndarray, params: SamplingParams) -> list[int]:
    """Stages 6 to 8, sorted by id."""
    scaled = logits.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    kept = [i for i in range(len(logits)) if weights[i] >= params.min_p]
    kept.sort(key=lambda i: (-logits[i], i))
    if params.top_k:
        kept = kept[: params.top_k]
    if params.top_p == 1:
        return sorted(kept)
    mass, total, count = 0.0, sum(weights[i] for i in kept), 0
    while count < len(kept) and (count == 0 or mass < params.top_p * total):
        mass += weights[kept[count]]
        count += 1
    return sorted(kept[:count])


def naive_ends(logits: np.ndarray, kept: list[int], params: SamplingParams) -> np.ndarray:
    """Running sum of the kept tokens' probabilities."""
    scaled = logits.astype(np.float64)[kept] / params.temperature
    ends = np.exp(scaled - scaled.max()).cumsum()
    return ends / ends[-1]


def naive_draw(logits: np.ndarray, params: SamplingParams, uniform: float) -> int:
    kept = naive_kept(logits, params)
    ends = naive_ends(logits, kept, params)
    return kept[min(int((ends <= uniform).sum()), len(kept) - 1)]


def naive_covers(
    logits: np.ndarray, params: SamplingParams, token: int, uniform: float, slack: float
) -> bool:
    """Whether a token's stretch of the distribution comes within ``slack`` of ``uniform``."""
    kept = naive_kept(logits, params)
    if token not in kept:
        return False
    place = kept.index(token)
    ends = naive_ends(logits, kept, params)
    begin = ends[place - 1] if place else 0.0
    return bool(begin - slack <= uniform <= ends[place] + slack)


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    size = draw(st.sampled_from([1, 5, 256, 257, 1000, 20_000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 0.5, 3.0, 10.0]))
    logits = rng.standard_normal(size) * spread
    if draw(st.booleans()):
        logits = logits.round(1)  # many equal ones
    return logits.astype(np.float32)


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 50, 5000]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(rows(), params_strategy, st.floats(1e-6, 1 - 1e-6))
def test_draws_equal_the_naive_rule(logits: np.ndarray, params: SamplingParams, uniform: float):
    expected = naive_draw(logits, params, uniform)
    drawn = rule.draw(logits.copy(), params, uniform)
    if drawn != expected:  # float32 against float64: only a border may be crossed
        borders = [
            SamplingParams(
                temperature=params.temperature,
                top_p=min(1, params.top_p + e),
                top_k=params.top_k,
                min_p=max(0, params.min_p - e),
            )
            for e in (0.0, -1e-5, 1e-5)
        ]
        assert any(naive_covers(logits, other, drawn, uniform, 1e-5) for other in borders)


@settings(max_examples=60, deadline=None)
@given(rows(), st.integers(1, 300))
def test_rank_is_the_order_of_falling_value_then_rising_id(logits: np.ndarray, count: int):
    expected = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:count]
    assert rule.rank(logits, count).tolist() == expected


def test_drawn_tokens_follow_the_distribution():
    logits = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], np.float32))
    numbers = uniforms([7] * 5000, [0] * 5000, list(range(5000)))
    for params, expected in (
        (SamplingParams(), [0.5, 0.2, 0.15, 0.1, 0.05]),
        (SamplingParams(top_k=2), [5 / 7, 2 / 7, 0, 0, 0]),
        (SamplingParams(top_p=0.8), [0.5 / 0.85, 0.2 / 0.85, 0.15 / 0.85, 0, 0]),
        (SamplingParams(min_p=0.25), [0.5 / 0.85, 0.2 / 0.85, 0.15 / 0.85, 0, 0]),
        (SamplingParams(temperature=0.5), np.square([0.5, 0.2, 0.15, 0.1, 0.05]) / 0.325),
    ):
        drawn = [rule.draw(logits.copy(), params, u) for u in numbers.tolist()]
        counts = np.bincount(drawn, minlength=5)
        likely = np.asarray(expected) > 0
        wanted = np.asarray(expected)[likely] * 5000
        assert counts[~likely].sum() == 0
        assert ((counts[likely] - wanted) ** 2 / wanted).sum() < 18.5  # 4 df, p = 0.001


def test_top_p_of_a_flat_row_keeps_just_enough_tokens_lowest_ids_first():
    logits = np.zeros(1000, np.float32)
    params = SamplingParams(top_p=0.3)
    assert {rule.draw(logits.copy(), params, (u + 0.5) / 300) for u in range(300)} == set(
        range(300)
    )


def test_a_temperature_near_zero_is_greedy_and_equals_go_to_the_lowest_id():
    logits = np.array([1, 3, 3, 2], np.float32)
    for temperature in (0, 1e-6):
        assert rule.draw(logits.copy(), SamplingParams(temperature=temperature), 0.99) == 1


def test_a_tiny_temperature_does_not_overflow():
    logits = np.array([1e30, 3, -1e30], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert rule.draw(logits, SamplingParams(temperature=2e-5), 0.5) == 0


def test_penalties_change_logits_as_stated():
    logits = np.array([2, -2, 2, 1, 1], np.float32)
    params = SamplingParams(repetition_penalty=2, frequency_penalty=0.5, presence_penalty=0.25)
    penalised = Penalised(ids=np.array([0, 1, 3]), counts=np.array([0, 1, 2]))
    rule.adjust(logits, params, forbidden=(), penalised=penalised)
    assert logits.tolist() == [1, -4 - 0.5 - 0.25, 2, 0.5 - 1 - 0.25, 1]


def test_bias_is_added_and_forbidden_tokens_are_impossible():
    logits = np.array([1, 2, 3], np.float32)
    params = SamplingParams(logit_bias=((0, 5.0), (2, -100.0)))
    rule.adjust(logits, params, forbidden=(1,), penalised=None)
    assert logits.tolist() == [6, -math.inf, -97]


def test_the_order_is_bias_then_repetition_penalty():
    logits = np.array([1.0], np.float32)
    params = SamplingParams(logit_bias=((0, 3.0),), repetition_penalty=2)
    penalised = Penalised(ids=np.array([0]), counts=np.array([0]))
    rule.adjust(logits, params, forbidden=(), penalised=penalised)
    assert logits.tolist() == [2]


@pytest.mark.parametrize(
    ("logits", "message"),
    [([-math.inf] * 3, "all are forbidden"), ([1, math.nan, 2], "not finite"), ([math.inf], "not")],
)
def test_rows_without_a_sensible_best_token_fail(logits: list[float], message: str):
    for temperature in (0, 1):
        with pytest.raises(SamplingFailed, match=message):
            rule.draw(np.array(logits, np.float32), SamplingParams(temperature=temperature), 0.5)


@settings(max_examples=40, deadline=None)
@given(rows(), st.integers(0, 20))
def test_logprobs_are_a_log_softmax_sorted_by_falling_probability(logits: np.ndarray, num_top: int):
    token = int(logits.argmin())
    result = rule.logprobs_of(logits, token, num_top)
    exact = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    assert result.logprob == pytest.approx(exact[token], abs=1e-4)
    assert len(result.top) == min(num_top, logits.size)
    assert [lp for _, lp in result.top] == sorted((lp for _, lp in result.top), reverse=True)
    for other, logprob in result.top:
        assert logprob == pytest.approx(exact[other], abs=1e-4)
