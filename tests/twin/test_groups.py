"""Figures of classes and tenants: all of them, and those of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_cluster import config_of, play

from headrace.core.router.limits import RouterLimits
from headrace.monitoring.goodput import Pace, Targets
from headrace.twin.groups import Group, Window
from headrace.twin.report import to_table
from headrace.twin.traces.arrivals import Trace, merged
from headrace.twin.traces.opening import open_trace
from headrace.twin.traces.terms import Terms

if TYPE_CHECKING:
    from headrace.twin.figures import Figures, GroupFigures

ASKING = "gen:poisson?rate=4&requests=30&prompt=64&output=16&class=interactive"
BESIDE = "gen:poisson?rate=4&requests=20&prompt=64&output=16&class=batch&tenant=blue"


def both(targets: str) -> Trace:
    return merged([open_trace(f"{ASKING}&{targets}", seed=0), open_trace(BESIDE, seed=1)])


def rows(figures: Figures) -> dict[str, GroupFigures]:
    return {row.priority: row for row in figures.groups}


def test_each_class_and_tenant_has_its_own_figures():
    _, figures = play(config_of(1), both("ttft_ms=60000&itl_ms=60000"))
    interactive, batch = figures.groups
    assert (interactive.priority, interactive.tenant) == ("interactive", "default")
    assert (batch.priority, batch.tenant) == ("batch", "blue")
    assert (interactive.requests, interactive.completed, batch.requests) == (30, 30, 20)
    assert (interactive.with_targets, interactive.within_targets) == (30, 30)
    assert (batch.with_targets, batch.goodput_per_s) == (0, 0)
    total = interactive.output_tokens_per_s + batch.output_tokens_per_s
    assert abs(total - figures.output_tokens_per_s) < 0.01
    table = to_table(figures)
    assert "interactive default" in table
    assert "100.0%" in table
    _, plain = play(config_of(1), open_trace("gen:poisson?requests=5&output=8", seed=0))
    assert "goodput" not in to_table(plain)


def test_what_is_too_slow_is_missed_by_name_and_what_cannot_be_kept_is_refused():
    trace = both("ttft_ms=1&itl_ms=0.01")
    lenient = RouterLimits(refuse_infeasible=False)
    _, figures = play(config_of(1, router=lenient), trace)
    row = rows(figures)["interactive"]
    assert row.within_targets == 0
    if not row.missed.get("refused"):  # by the engine
        assert row.missed == {"ttft": 30, "itl": 30}
    assert figures.wrong_tokens == 0


@pytest.mark.parametrize("seed", range(4))
def test_targets_are_carried_between_clocks_that_differ(seed: int):
    _, figures = play(config_of(1, seed=seed), both("ttft_ms=3000"))
    assert rows(figures)["interactive"].within_targets == 30
    crowd = open_trace("gen:poisson?rate=40&requests=200&output=16&ttft_ms=800", seed=0)
    lenient = RouterLimits(refuse_infeasible=False)
    _, figures = play(config_of(1, seed=seed, router=lenient), crowd)
    assert 0 < rows(figures)["standard"].missed["refused"] < 200, "the engine refuses some"


def test_a_window_counts_only_what_happens_in_it():
    trace = both("ttft_ms=60000")
    _, whole = play(config_of(1), trace)
    _, figures = play(config_of(1, window=Window(2.0, 4.0)), trace)
    expected = sum(2 <= a.at < 4 for a in trace.arrivals if a.terms.tenant == "default")
    assert 0 < expected == rows(figures)["interactive"].requests < 30
    assert figures.ttft_ms == whole.ttft_ms, "the run is the same"


def test_a_group_counts_what_began_in_its_window():
    group = Group(Window(10.0, 20.0))
    terms = Terms(targets=Targets(ttft=1.0))
    for began, ttft in ((9.0, 0.5), (10.0, 0.5), (19.0, 5.0), (20.0, 0.5)):
        group.begin(began)
        group.first_token(began, began + ttft)
        group.end(began, terms, Pace(6.0, ttft, None), "length")
    assert (group.requests, group.completed, len(group.ttft)) == (2, 2, 2)
    assert (group.with_targets, group.within_targets) == (2, 1)
    assert dict(group.missed) == {"ttft": 1}


def test_behind_full_replicas_urgent_requests_pass_a_crowd_where_the_queue_is_fair():
    crowd = open_trace(
        "gen:poisson?rate=60&requests=300&output=32&class=batch&tenant=crowd", seed=1
    )
    trace = merged([open_trace(ASKING, seed=0), crowd])
    waits, outputs = [], []
    for is_fair in (True, False):
        limits = RouterLimits(
            max_waiting=4096, max_wait=600.0, max_outstanding=16, fair_queue=is_fair
        )
        _, figures = play(config_of(1, router=limits), trace)
        ttft = rows(figures)["interactive"].ttft_ms
        assert ttft is not None
        assert figures.failed == figures.wrong_tokens == 0
        waits.append(ttft.p95)
        outputs.append(figures.output_tokens_per_s)
    assert waits[0] < waits[1] / 4, "p95 of the first token"
    assert outputs[0] > 0.95 * outputs[1], "at no cost in tokens"
