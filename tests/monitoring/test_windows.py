"""Windows: exact in number, near in value, bounded in time and memory."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.monitoring.windows import SLICE_SECONDS, WINDOW_SECONDS, Spread, Window

ERROR = 0.02


@given(st.lists(st.floats(1e-4, 3600), min_size=1, max_size=200))
def test_percentiles_are_near_those_of_the_values_themselves(values: list[float]):
    spread = Spread()
    for value in values:
        spread.observe(value, now=100.0)
    found = spread.percentiles(100.0)
    for share, told in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        exact = sorted(values)[math.ceil(share * len(values)) - 1]
        assert told == pytest.approx(exact, rel=ERROR)
    assert spread.count(100.0) == len(values)


def test_values_out_of_range_count_at_its_ends():
    spread = Spread()
    for value in (0.0, -1.0):
        spread.observe(value, 0.0)
    assert spread.percentiles(0.0).p50 == pytest.approx(1e-4, rel=0.05)
    spread.observe(1e9, 0.0, times=100)
    assert spread.percentiles(0.0).p50 == pytest.approx(3600, rel=0.05)


def test_an_empty_window_has_no_percentiles():
    found = Spread().percentiles(5.0)
    assert (found.p50, found.p95, found.p99) == (None, None, None)


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3), st.integers(1, 9)), max_size=60),
    st.floats(0, 100),
)
def test_counts_are_those_of_the_last_minute(steps: list[tuple[float, int, int]], later: float):
    window, now, added = Window(), 1000.0, []
    for pause, key, number in steps:
        now += pause
        window.add(key, number, now)
        added.append((now, key, number))
    now += later
    counts = window.counts(now)
    oldest = (now // SLICE_SECONDS) * SLICE_SECONDS - WINDOW_SECONDS + SLICE_SECONDS
    for key in range(4):
        assert counts[key] == sum(n for at, k, n in added if k == key and at >= oldest)
    assert len(window._slices) <= WINDOW_SECONDS / SLICE_SECONDS


def test_rates_after_a_start_are_over_the_time_since():
    window = Window()
    assert window.seconds(500.0) == 1.0
    window.add(0, 1, 500.0)
    assert window.seconds(500.1) == 1.0, "not less than a second, or the first rate is absurd"
    assert window.seconds(520.0) == pytest.approx(20.0)
    assert WINDOW_SECONDS - SLICE_SECONDS <= window.seconds(900.0) <= WINDOW_SECONDS
