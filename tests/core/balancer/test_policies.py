"""Each policy by examples, and what all of them must do."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.balancer.least_requests import LeastRequests
from headrace.core.balancer.policy import Candidate, ReplicaFacts, ReplicaView
from headrace.core.balancer.predicted_ttft import (
    SAMPLE,
    TOLERANCE,
    PredictedTtft,
    seconds_to_first_token,
)
from headrace.core.balancer.registry import POLICIES, build_policy
from headrace.core.balancer.round_robin import RoundRobin
from headrace.core.costs.step_time import StepCosts
from headrace.errors import UsageError
from headrace.types import ReplicaId, Request, RequestId

if TYPE_CHECKING:
    from headrace.core.balancer.policy import Policy

FACTS = ReplicaFacts(block_size=16, num_blocks=1000, max_num_seqs=8, max_num_batched_tokens=256)
COSTS = StepCosts(step=0.01, prefill_token=0.001, output_token=0.001)


def view(
    name: str,
    *,
    outstanding: int = 0,
    prefill: int = 0,
    decoding: int = 0,
    context: int = 0,
    costs: StepCosts = COSTS,
) -> ReplicaView:
    return ReplicaView(
        replica=ReplicaId(name),
        progress_at=0.0,
        facts=FACTS,
        outstanding=outstanding or decoding,
        prefill_tokens=prefill,
        decoding=decoding,
        context_tokens=context,
        costs=costs,
    )


def asks(first_block: int = 0) -> Request:
    chain = (first_block.to_bytes(32, "big"),) if first_block else ()
    return Request(id=RequestId("a"), prompt=(1,), max_tokens=4, chain=chain)


def choice(policy: Policy, *candidates: Candidate, tokens: int = 640, block: int = 0) -> str:
    return str(policy.choose(asks(block), tokens, candidates).replica)


def test_round_robin_takes_turns_whatever_the_load() -> None:
    policy = RoundRobin()
    candidates = [Candidate(view("r0", outstanding=9), 0), Candidate(view("r1"), 600)]
    assert [choice(policy, *candidates) for _ in range(4)] == ["r0", "r1", "r0", "r1"]


def test_least_requests_counts_and_equals_take_turns() -> None:
    policy = LeastRequests()
    candidates = [Candidate(view(f"r{n}", outstanding=n // 2), 0) for n in (2, 0, 1)]
    assert Counter(choice(policy, *candidates) for _ in range(6)) == {"r0": 3, "r1": 3}


def test_predicted_ttft_goes_where_the_prompt_is() -> None:
    found = PredictedTtft().choose(
        asks(), 640, [Candidate(view("r0"), 0), Candidate(view("r1"), 512)]
    )
    assert found.replica == "r1"
    assert found.predicted_ttft == pytest.approx(0.01 + 0.128)
    assert found.reason == (
        "0.138 s here (512 of 640 tokens cached); cost 0.138, next best r0 0.67"
    )


def test_predicted_ttft_leaves_the_prompt_where_too_much_is_before_it() -> None:
    candidates = [Candidate(view("r0"), 0), Candidate(view("r1", prefill=1000), 512)]
    assert choice(PredictedTtft(), *candidates) == "r0"


def test_predicted_ttft_counts_what_my_prompt_does_to_others() -> None:
    candidates = [Candidate(view("r0", prefill=100), 0), Candidate(view("r1", decoding=8), 0)]
    assert choice(PredictedTtft(), *candidates) == "r0"


def test_predicted_ttft_avoids_a_full_cache() -> None:
    nearly_full = view("r1", decoding=4, context=15_900)
    candidates = [Candidate(view("r0", decoding=4, context=100), 0), Candidate(nearly_full, 16)]
    assert choice(PredictedTtft(), *candidates, tokens=6400) == "r0"


def test_predicted_ttft_avoids_a_full_batch() -> None:
    candidates = [
        Candidate(view("r0", prefill=100, outstanding=1), 0),
        Candidate(view("r1", outstanding=8, prefill=50), 0),
    ]
    assert choice(PredictedTtft(), *candidates) == "r0"


def test_predicted_ttft_prefers_the_faster_machine() -> None:
    slow = StepCosts(step=0.02, prefill_token=0.002, output_token=0.002)
    candidates = [Candidate(view("r0", costs=slow), 0), Candidate(view("r1", prefill=300), 0)]
    assert choice(PredictedTtft(), *candidates) == "r1"


def test_equal_prompts_meet_and_different_ones_spread() -> None:
    policy = PredictedTtft()
    idle = [Candidate(view(f"r{n}"), 0) for n in range(4)]
    assert len({choice(policy, *idle, block=77) for _ in range(9)}) == 1
    spread = Counter(choice(policy, *idle, block=n << 200) for n in range(1, 401))
    assert len(spread) == 4
    assert min(spread.values()) > 60
    unnamed = Counter(choice(policy, *idle) for _ in range(400))
    assert min(unnamed.values()) > 60


def test_two_gateways_agree_on_a_cold_prefix() -> None:
    idle = [Candidate(view(f"r{n}"), 0) for n in range(4)]
    for block in range(1, 50):
        assert choice(PredictedTtft(), *idle, block=block << 200) == choice(
            PredictedTtft(), *reversed(idle), block=block << 200
        )


def test_a_small_difference_in_speed_does_not_wear_one_replica_out() -> None:
    quick = StepCosts(*(0.99 * cost for cost in COSTS))
    candidates = [Candidate(view("r0", costs=quick), 0), Candidate(view("r1"), 0)]
    spread = Counter(choice(PredictedTtft(), *candidates) for _ in range(100))
    assert min(spread.values()) > 20


views = st.builds(
    lambda prefill, decoding, waiting, context, cached: (
        prefill,
        decoding,
        waiting,
        context,
        cached,
    ),
    st.integers(0, 20_000),
    st.integers(0, 40),
    st.integers(0, 10),
    st.integers(0, 20_000),
    st.integers(0, 639),
)


@settings(max_examples=150, deadline=None)
@given(loads=st.lists(views, min_size=1, max_size=6), name=st.sampled_from(sorted(POLICIES)))
def test_every_policy_answers_with_a_candidate_and_scores_all(
    loads: list[tuple[int, int, int, int, int]], name: str
) -> None:
    candidates = [
        Candidate(view(f"r{n}", prefill=p, decoding=d, outstanding=d + w, context=context), cached)
        for n, (p, d, w, context, cached) in enumerate(loads)
    ]
    found = build_policy(name).choose(asks(), 640, candidates)
    names = [candidate.view.replica for candidate in candidates]
    assert found.replica in names
    assert found.reason
    if found.scores:
        assert [score.replica for score in found.scores] == names
        costs = {score.replica: score.cost for score in found.scores}
        assert costs[found.replica] <= min(costs.values()) * (1 + TOLERANCE)


@settings(max_examples=100, deadline=None)
@given(
    prefill=st.integers(0, 9000),
    decoding=st.integers(0, 300),
    uncached=st.integers(1, 9000),
    more=st.integers(1, 500),
)
def test_more_work_never_makes_the_first_token_come_sooner(
    prefill: int, decoding: int, uncached: int, more: int
) -> None:
    def seconds(prefill: int, decoding: int, uncached: int) -> float:
        return seconds_to_first_token(
            view("r0", prefill=prefill, decoding=decoding), uncached, uncached
        )

    before = seconds(prefill, decoding, uncached)
    assert seconds(prefill + more, decoding, uncached) >= before
    assert seconds(prefill, decoding, uncached + more) >= before


def test_an_unknown_policy_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        build_policy("least_request")
    assert str(caught.value) == (
        "there is no policy 'least_request'; "
        "did you mean least_requests, round_robin, predicted_ttft?"
    )


def test_a_replica_that_does_not_say_its_size_is_never_full() -> None:
    unknown = view("r0", outstanding=3, context=90_000)
    unknown.facts = ReplicaFacts()
    assert seconds_to_first_token(unknown, 100, 100) == pytest.approx(0.01 + 0.1)


def test_of_many_candidates_those_with_the_prompt_and_a_sample_are_priced() -> None:
    candidates = [Candidate(view(f"r{n}"), 600 if n == 50 else 0) for n in range(64)]
    policy = PredictedTtft()
    found = policy.choose(asks(), 640, candidates)
    assert found.replica == "r50"
    assert len(found.scores) == SAMPLE
    cold = [Candidate(view(f"r{n}"), 0) for n in range(64)]
    assert len({choice(policy, *cold) for _ in range(400)}) > 40
