"""One replica becomes slow and says nothing of it: what waits there is moved, inside the budget."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from test_cluster import config_of, play

from headrace.core.router.limits import RouterLimits
from headrace.twin.config import Slow
from headrace.twin.figures import Figures, to_json
from headrace.twin.traces.opening import open_trace

NUM = 200
TRACE = f"gen:poisson?rate=5&requests={NUM}&prompt=600&output=60"
GRAY = (Slow(replica=1, factor=20.0, at=10.0),)


@cache
def played(
    policy: str, slows: tuple[Slow, ...] = GRAY, *, hedge_after: float = 2.0, seed: int = 0
) -> Figures:
    limits = RouterLimits(max_waiting=4096, max_wait=600.0, hedge_after=hedge_after)
    config = replace(config_of(policy=policy, seed=seed), slows=slows, router=limits)
    return play(config, open_trace(TRACE, seed=seed))[1]


def ttft(figures: Figures, percentile: str) -> float:
    assert figures.ttft_ms is not None
    value = getattr(figures.ttft_ms, percentile)
    assert isinstance(value, float)
    return value


def test_a_slow_replica_costs_the_tail_much_less():
    with_it, without = (played("round_robin", hedge_after=after) for after in (2.0, 0.0))
    assert without.hedges == 0
    assert with_it.hedges > 5
    assert ttft(with_it, "p95") < 0.5 * ttft(without, "p95")
    assert ttft(with_it, "p50") < 1.1 * ttft(without, "p50")


def test_the_default_policy_gains_by_what_it_sent_there_before_it_noticed():
    with_it, without = (
        [played("predicted_ttft", hedge_after=after, seed=seed) for seed in range(3)]
        for after in (2.0, 0.0)
    )
    for measure in ("mean", "max"):
        gained = sum(ttft(each, measure) for each in with_it)
        assert gained < sum(ttft(each, measure) for each in without)


@pytest.mark.parametrize("policy", ["round_robin", "predicted_ttft"])
def test_nothing_is_lost_and_attempts_stay_inside_the_budget(policy: str):
    figures = played(policy)
    assert figures.completed == NUM
    assert figures.failed == figures.wrong_tokens == 0
    attempts = sum(row.requests for row in figures.replicas)
    assert attempts == NUM + figures.hedges + figures.retries + figures.migrations
    assert figures.hedges + figures.retries <= 0.1 * NUM + 3


@pytest.mark.parametrize("policy", ["round_robin", "least_requests", "predicted_ttft"])
def test_where_all_are_well_nobody_moves(policy: str):
    assert played(policy, ()).hedges == 0
    assert to_json(played(policy, ())) == to_json(played(policy, (), hedge_after=0.0))


def test_a_run_with_a_slow_replica_repeats_itself():
    again = played.__wrapped__("predicted_ttft")
    assert to_json(again) == to_json(played("predicted_ttft"))
