"""Weights and load that came past the router, under any policy."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.balancer.least_requests import LeastRequests
from headrace.core.balancer.policy import Candidate, Choice, ReplicaFacts, ReplicaView
from headrace.core.balancer.predicted_ttft import PredictedTtft
from headrace.core.balancer.round_robin import RoundRobin
from headrace.core.balancer.weighted import Weighted
from headrace.types import ReplicaId, Request, RequestId

POLICIES = (LeastRequests, RoundRobin, PredictedTtft)
REQUEST = Request(id=RequestId("a"), prompt=(), max_tokens=8)


def candidates(*weights: float, **fields: int) -> list[Candidate]:
    return [
        Candidate(
            ReplicaView(
                replica=ReplicaId(f"r{index}"),
                progress_at=0.0,
                facts=ReplicaFacts(weight=weight),
                **fields,
            ),
            0,
        )
        for index, weight in enumerate(weights)
    ]


def dispatched(policy: Weighted, given: list[Candidate], number: int) -> Counter[str]:
    """Send requests that all stay; return how many each replica has."""
    counts: Counter[str] = Counter()
    for _ in range(number):
        choice = policy.choose(REQUEST, 100, given)
        (view,) = [each.view for each in given if each.view.replica == choice.replica]
        view.outstanding += 1
        view.decoding += 1
        counts[choice.replica] += 1
    return counts


@pytest.mark.parametrize("build", POLICIES)
@pytest.mark.parametrize("weights", [(2, 1), (1, 3, 1), (0.5, 1), (1.5, 1)])
def test_load_is_in_the_ratio_of_weights(
    build: type[LeastRequests | RoundRobin | PredictedTtft], weights: tuple[float, ...]
) -> None:
    counts = dispatched(Weighted(build()), candidates(*weights), 600)
    for index, weight in enumerate(weights):
        assert counts[f"r{index}"] == pytest.approx(600 * weight / sum(weights), rel=0.1)


@pytest.mark.parametrize("build", POLICIES)
def test_equal_weights_change_nothing(
    build: type[LeastRequests | RoundRobin | PredictedTtft],
) -> None:
    plain, wrapped = build(), Weighted(build())
    assert wrapped.name == plain.name
    for shown in (candidates(1, 1, 1), candidates(3, 3)):
        for _ in range(5):
            assert plain.choose(REQUEST, 9, shown) == wrapped.choose(REQUEST, 9, shown)


def test_what_came_past_us_counts() -> None:
    given = candidates(1, 1)
    given[0].view.past_us = 10
    assert dispatched(Weighted(LeastRequests()), given, 10) == {"r1": 10}
    assert dispatched(Weighted(LeastRequests()), given, 20) == {"r0": 10, "r1": 10}


class _Seeing:
    """A policy that keeps what it is shown, and takes the last."""

    name = "seeing"

    def __init__(self) -> None:
        self.shown: list[Candidate] = []

    def choose(self, request: Request, prompt_tokens: int, given: list[Candidate]) -> Choice:
        self.shown = list(given)
        return Choice(given[-1].view.replica, "last")


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 50))
def test_a_policy_sees_every_replica_and_true_views_stay(weights: list[float], load: int) -> None:
    given, seeing = candidates(*weights, outstanding=load), _Seeing()
    choice = Weighted(seeing).choose(REQUEST, 9, given)
    assert {each.view.replica for each in seeing.shown} == {each.view.replica for each in given}
    assert choice.replica in {each.view.replica for each in given}
    assert all(each.view.outstanding == load for each in given)
    assert len(seeing.shown) <= 64 * len(weights)
