"""What counts as within its targets, case by case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.monitoring.goodput import NO_TARGETS, Pace, Targets, check, missed

ALL = Targets(ttft=1.0, itl=0.1, deadline=10.0)
GOOD = Pace(5.0, 0.5, 0.05)
seconds = st.none() | st.floats(0.001, 100)


@pytest.mark.parametrize(
    ("pace", "state", "expected"),
    [
        (GOOD, "stop", ()),
        (GOOD, "length", ()),
        (Pace(10.0, 1.0, 0.1), "stop", ()),  # exactly what was asked for
        (Pace(5.0, 1.1, 0.05), "stop", ("ttft",)),
        (Pace(11.0, 1.1, 0.2), "stop", ("ttft", "itl", "deadline")),
        (Pace(5.0, 0.5, None), "stop", ()),  # a single token has no gaps
        (GOOD, "engine_fault", ("failed",)),
        (Pace(5.0, 1.5, 0.05), "worker_lost", ("ttft", "failed")),
        (Pace(0.1), "deadline_infeasible", ("refused",)),
        (Pace(31.0), "overloaded", ("refused",)),
        (Pace(10.5, 0.5, 0.05), "deadline_exceeded", ("deadline",)),
        (Pace(0.1), "abort", None),
        (Pace(1.1), "abort", ("ttft",)),
    ],
)
def test_what_a_request_has_missed(pace: Pace, state: str, expected: tuple[str, ...] | None):
    assert missed(ALL, pace, state) == expected
    assert missed(NO_TARGETS, pace, state) is None


@given(st.builds(Targets, seconds, seconds, seconds), st.builds(Pace, st.floats(0, 100), seconds))
def test_what_is_missed_once_is_missed_however_much_longer_it_takes(targets: Targets, pace: Pace):
    def late(now: Pace) -> set[str]:
        return {row.name for row in check(targets, now) if row.is_missed}

    assert late(pace) <= late(pace._replace(seconds=pace.seconds + 1))
    assert {row.name for row in check(targets, pace)} == {
        name for name, asked in targets._asdict().items() if asked is not None
    }
