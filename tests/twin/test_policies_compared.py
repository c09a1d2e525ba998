"""Every policy plays the same small trace: nothing is lost, and each is good at what it is for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from test_cluster import config_of, play

from headrace.core.balancer.registry import POLICIES
from headrace.monitoring.goodput import Targets
from headrace.twin.figures import Figures, to_json
from headrace.twin.traces.opening import open_trace

SHARED = "gen:shared-prefix?rate=12&requests=60&groups=4&prefix=512&prompt=64&output=12"
LOOKING_AT_PROMPTS = sorted(
    POLICIES.keys() - {"round_robin", "random", "least_requests", "power_of_two"}
)


@cache
def played(policy: str) -> Figures:
    config = config_of(policy=policy, targets=Targets(ttft=60.0, itl=60.0), seed=5)
    return play(config, open_trace(SHARED, seed=3))[1]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_with_any_policy_every_request_ends_with_its_own_tokens(policy: str):
    figures = played(policy)
    assert figures.completed == 60
    assert figures.failed == figures.wrong_tokens == 0


@pytest.mark.parametrize("policy", LOOKING_AT_PROMPTS)
def test_policies_that_look_at_prompts_find_more_of_them_cached(policy: str):
    assert played(policy).cached_share > played("round_robin").cached_share


@pytest.mark.parametrize("policy", ["random", "predicted_ttft"])
def test_a_run_with_chance_in_it_repeats_itself(policy: str):
    again = play(
        config_of(policy=policy, targets=Targets(ttft=60.0, itl=60.0), seed=5),
        open_trace(SHARED, seed=3),
    )[1]
    assert to_json(again) == to_json(played(policy))


def test_another_seed_is_another_chance():
    config = config_of(policy="random", seed=6)
    _, figures = play(config, open_trace(SHARED, seed=3))
    assert [row.requests for row in figures.replicas] != [
        row.requests for row in played("random").replicas
    ]


def test_goodput_is_measured_by_the_runs_targets_without_anybody_knowing_them():
    trace = open_trace(SHARED, seed=3)
    _, unmeasured = play(config_of(policy="random", seed=5), trace)
    (group,) = played("random").groups
    assert (group.with_targets, group.within_targets) == (60, 60)
    assert unmeasured.groups[0].with_targets == 0
    assert unmeasured.ttft_ms == played("random").ttft_ms


def test_a_session_of_the_trace_reaches_the_policy():
    trace = open_trace(SHARED, seed=3)
    one = replace(trace, arrivals=tuple(a._replace(session="one") for a in trace.arrivals))
    _, figures = play(config_of(policy="session_affinity"), one)
    assert sorted(row.requests for row in figures.replicas) == [0, 0, 60]
