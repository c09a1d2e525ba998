"""Figures from outcomes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench.client import Failure, Outcome
from headrace.bench.config import Goodput
from headrace.bench.http import FailureKind
from headrace.bench.stats import Sample, distribution, percentile, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence


def sample(
    due: float = 0.0,
    start: float = 0.0,
    times: Sequence[float] = (),
    end: float = 1.0,
    **more: Any,  # noqa: ANN401
) -> Sample:
    return Sample(
        due_at=due,
        outcome=Outcome(started_at=start, ended_at=end, piece_times=times, **more),
    )


@pytest.mark.parametrize(("share", "value"), [(0, 10), (0.5, 30), (0.25, 20), (0.9, 46), (1, 50)])
def test_a_percentile_lies_between_its_neighbours(share: float, value: float):
    assert percentile([10, 20, 30, 40, 50], share) == pytest.approx(value)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_ascend_and_stay_inside(values: list[float]):
    d = distribution(values)
    assert d is not None
    figures = [min(values) * 1000, d.p50, d.p90, d.p95, d.p99, d.max]
    slack = 1e-6 * (1 + d.max)
    assert all(a <= b + slack for a, b in itertools.pairwise(figures))
    assert d.max == pytest.approx(max(values) * 1000)


def test_latencies_run_from_when_a_request_was_due():
    late = sample(due=1.0, start=3.0, times=[4.0, 4.5, 5.5], end=6.0, output_tokens=5)
    summary = summarise([late])
    assert summary.ttft_ms is not None
    assert summary.itl_ms is not None
    assert summary.tpot_ms is not None
    assert summary.e2e_ms is not None
    assert summary.lag_ms is not None
    assert summary.ttft_ms.p50 == 3000
    assert (summary.itl_ms.count, summary.itl_ms.p50) == (2, 750)
    assert summary.tpot_ms.p50 == pytest.approx(1500 / 4)
    assert summary.e2e_ms.p50 == 5000
    assert summary.lag_ms.p50 == 2000
    assert summary.output_tokens_per_s == 1.0


def test_cut_and_failed_requests_are_in_no_latency():
    failure = Failure(kind=FailureKind.STATUS, message="no", status=503)
    good = sample(times=[0.1, 0.2], output_tokens=2)
    summary = summarise(
        [
            good,
            sample(times=[9.0], end=9.0, cut=True),
            sample(failure=failure),
            sample(failure=failure),
        ]
    )
    assert (summary.completed, summary.cut, summary.failed) == (1, 1, 2)
    assert summary.ttft_ms is not None
    assert summary.ttft_ms.count == 1
    assert summary.output_tokens == 3
    assert [(e.kind, e.count) for e in summary.errors] == [("status 503", 2)]


def test_tokens_are_counted_by_pieces_where_the_server_reports_none():
    assert summarise([sample(times=[0.1, 0.2])]).tokens_counted_by == "pieces"
    both = [sample(times=[0.1]), sample(times=[0.1], output_tokens=1)]
    assert summarise(both).tokens_counted_by == "mixed"


def test_goodput_counts_requests_within_every_limit():
    fast = sample(times=[0.1, 0.11], end=0.2, output_tokens=2)
    slow_start = sample(times=[0.9, 0.91], end=1.0, output_tokens=2)
    slow_tokens = sample(times=[0.1, 0.9], end=1.0, output_tokens=2)
    summary = summarise([fast, slow_start, slow_tokens], goodput=Goodput(ttft_ms=500, itl_ms=50))
    assert summary.goodput_per_s == pytest.approx(1.0)
    assert summary.good_share == pytest.approx(1 / 3)
