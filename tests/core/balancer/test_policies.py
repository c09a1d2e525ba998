"""What every policy must do, whatever it thinks of replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fleets import asks, chosen, idle, view
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.balancer.policy import Candidate
from headrace.core.balancer.predicted_ttft import TOLERANCE
from headrace.core.balancer.registry import POLICIES, POLICY_WORDS, build_policy
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.types import Request

SPREADING = sorted(POLICIES.keys() - {"session_affinity"})
"""Policies that leave a replica because of its load."""

loads = st.lists(
    st.tuples(
        st.integers(0, 20_000),  # prompt tokens waiting
        st.integers(0, 40),  # requests that decode
        st.integers(0, 10),  # requests that wait
        st.integers(0, 20_000),  # context
        st.integers(0, 639),  # cached
    ),
    min_size=1,
    max_size=6,
)
requests = st.builds(
    lambda blocks, session: asks(*blocks, session=session),
    st.lists(st.integers(1, 3), max_size=4).map(lambda blocks: blocks or [0]),
    st.sampled_from(["", "a", "b"]),
)


def candidates_of(figures: list[tuple[int, int, int, int, int]]) -> list[Candidate]:
    return [
        Candidate(view(f"r{n}", prefill=p, decoding=d, outstanding=d + w, context=context), cached)
        for n, (p, d, w, context, cached) in enumerate(figures)
    ]


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=30, deadline=None)
@given(rounds=st.lists(st.tuples(loads, requests), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_a_policy_answers_with_a_candidate_and_tells_again_what_it_told(
    name: str, rounds: list[tuple[list[tuple[int, int, int, int, int]], Request]], seed: int
) -> None:
    policy, again = build_policy(name, seed), build_policy(name, seed)
    for figures, request in rounds:
        candidates = candidates_of(figures)
        found = policy.choose(request, 640, candidates)
        assert found == again.choose(request, 640, candidates)
        names = {candidate.view.replica for candidate in candidates}
        assert found.replica in names
        assert found.reason
        scored = {score.replica: score.cost for score in found.scores}
        assert scored.keys() <= names
        if scored:
            limit = min(scored.values()) + TOLERANCE * abs(min(scored.values()))
            assert scored[found.replica] <= limit


@pytest.mark.parametrize("name", SPREADING)
def test_requests_that_share_one_beginning_use_every_replica(name: str) -> None:
    """ai-dynamo/dynamo#7836 and #737: two of five, or seven of eight, stood idle."""
    policy, candidates = build_policy(name), idle(5)
    views = {candidate.view.replica: candidate.view for candidate in candidates}
    for number in range(200):
        found = policy.choose(asks(1, 2, 100 + number), 640, candidates).replica
        views[found].outstanding += 1
        views[found].prefill_tokens += 640
        views[found].context_tokens += 640
    assert min(each.outstanding for each in views.values()) >= 10


@pytest.mark.parametrize("name", sorted(set(SPREADING) - {"round_robin", "random"}))
def test_a_replica_with_far_more_than_all_others_gets_nothing(name: str) -> None:
    """ai-dynamo/dynamo#9688: it went on getting load until all were as full."""
    policy, candidates = build_policy(name), idle(4)
    first = policy.choose(asks(1, 2, 3), 640, candidates).replica
    view = next(each.view for each in candidates if each.view.replica == first)
    view.outstanding = view.decoding = 60
    view.prefill_tokens, view.context_tokens = 60_000, 15_000
    for number in range(40):
        assert policy.choose(asks(1, 2, 3 + number % 2), 640, candidates).replica != first


@pytest.mark.parametrize("name", ["random", "power_of_two", "dynamo_kv", "predicted_ttft"])
def test_gateways_that_see_the_same_do_not_all_run_to_one_place(name: str) -> None:
    """ai-dynamo/dynamo#589. Policies that hash agree on purpose."""
    places = {chosen(build_policy(name, seed), idle(8)) for seed in range(40)}
    assert len(places) == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("least_request", "did you mean least_requests"),
        ("cache_aware", "did you mean sglang_cache_aware"),
        ("Round-Robin", "did you mean round_robin"),
        ("llm-d", "did you mean llm_d_sticky or llm_d_scores"),
        ("zzz", "known are predicted_ttft, least_requests, power_of_two"),
    ],
)
def test_an_unknown_policy_is_refused_with_near_names(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_policy(name)
    assert str(caught.value).startswith(f"there is no policy {name!r}; ")
    assert words in str(caught.value)


def test_list_is_answered_with_what_each_does() -> None:
    with pytest.raises(UsageError) as caught:
        build_policy("list")
    lines = str(caught.value).splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(POLICIES)
    assert all(len(line.split()) > 1 for line in lines)
    assert "`list`" in POLICY_WORDS
    assert all(build_policy(name).name == name for name in POLICIES)
