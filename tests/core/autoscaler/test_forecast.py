"""Means over time, and how long a condition holds."""

from __future__ import annotations

from math import inf

import pytest

from headrace.core.autoscaler.forecast import Hold, Smoothed, StartTime


def test_a_mean_begins_with_its_first_value_and_forgets_with_time():
    mean = Smoothed(window=10)
    mean.update(4.0, 0)
    assert mean.value == 4.0
    mean.update(0.0, 10)
    assert mean.value == pytest.approx(4 / 2.718, rel=0.001)
    mean.update(0.0, 1000)
    assert mean.value == pytest.approx(0, abs=1e-9)


def test_a_mean_does_not_depend_on_how_often_it_is_told():
    often, seldom = Smoothed(window=5), Smoothed(window=5)
    for mean in (often, seldom):
        mean.update(1.0, 0)
    for step in range(1, 101):
        often.update(3.0, step / 10)
    seldom.update(3.0, 10)
    assert often.value == pytest.approx(seldom.value)


def test_a_guess_is_replaced_by_the_first_start_and_mixed_with_later_ones():
    start = StartTime(guess=60)
    start.update(4)
    assert start.seconds == 4
    start.update(14)
    assert start.seconds == pytest.approx(7)


def test_a_break_ends_a_hold_and_its_least_value():
    hold = Hold()
    hold.update(3, 0, 0, holds=True)
    hold.update(2, 0, 1, holds=True)
    hold.update(5, 0, 2, holds=True)
    assert hold.has_held(2)
    assert hold.least == 2
    hold.update(0, 0, 3, holds=False)
    assert not hold.has_held(0)
    hold.update(4, 0, 4, holds=True)
    assert hold.least == 4
    assert not hold.has_held(1)


def test_a_mean_that_falls_tells_when_it_will_be_down():
    hold = Hold()
    assert hold.seconds_until(1) == inf
    hold.update(0, 9, 10, holds=True)
    assert hold.seconds_until(1) == inf
    hold.update(0, 7, 12, holds=True)
    assert hold.seconds_until(1) == pytest.approx(6)
    hold.update(0, 11, 13, holds=True)
    assert hold.seconds_until(1) == inf
