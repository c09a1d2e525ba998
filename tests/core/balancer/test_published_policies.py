"""Policies of other routers, and those that remember what they sent: each by examples."""

from __future__ import annotations

from collections import Counter

import pytest
from fleets import COSTS, asks, chosen, chosen_often, idle, load, loaded, view

from headrace.core.balancer.draws import Draws
from headrace.core.balancer.dynamo_kv import DynamoKv
from headrace.core.balancer.llm_d_scores import LlmDScores
from headrace.core.balancer.llm_d_sticky import MAX_PENALTY, LlmDSticky
from headrace.core.balancer.lmetric import LMetric
from headrace.core.balancer.policy import Candidate, ReplicaFacts
from headrace.core.balancer.prefix_tree import PrefixTree
from headrace.core.balancer.registry import build_policy
from headrace.core.balancer.sent import Sent
from headrace.core.balancer.sglang_cache_aware import SglangCacheAware
from headrace.core.balancer.weighted import Weighted

REMEMBERING = ("prefix_tree", "sglang_cache_aware")


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_prompt_goes_back_to_where_most_of_it_was_sent(name: str) -> None:
    policy, candidates = build_policy(name), idle(4)
    home = chosen(policy, candidates, asks(1, 2, 3, 4))
    assert set(chosen_often(policy, candidates, asks(1, 2, 3, 9))) == {home}


@pytest.mark.parametrize("name", REMEMBERING)
def test_at_rest_unknown_prompts_do_not_all_go_to_the_first_replica(name: str) -> None:
    """sgl-project/sglang#32983."""
    policy = build_policy(name)
    counts = Counter(chosen(policy, idle(4), asks(100 + n)) for n in range(400))
    assert min(counts.values()) > 60


@pytest.mark.parametrize("name", REMEMBERING)
def test_an_unknown_prompt_goes_to_the_fewest_requests_not_to_the_smallest_tree(name: str) -> None:
    """sgl-project/sglang#14305: a replica that was just started drew every miss, and drowned."""
    policy = build_policy(name)
    for n in range(50):
        chosen(policy, loaded(0, 0, 9), asks(100 + n))
    assert chosen(policy, loaded(1, 0, 2), asks(7)) == "r1"


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_restarted_replica_has_lost_what_was_sent_there(name: str) -> None:
    """llm-d/llm-d-router#2853: its blocks stayed in the index."""
    policy, candidates = build_policy(name), loaded(0, 1)
    assert chosen(policy, candidates, asks(1, 2)) == "r0"
    restarted = [Candidate(view("r0", outstanding=1, life=1), 0), Candidate(view("r1"), 0)]
    assert chosen(policy, restarted, asks(1, 2)) == "r1"


@pytest.mark.parametrize("name", REMEMBERING)
def test_load_that_came_past_us_does_not_make_it_forget(name: str) -> None:
    """Then a policy sees views made for the occasion."""
    policy, candidates = Weighted(build_policy(name)), loaded(0, 1)
    for candidate in candidates:
        candidate.view.past_us = 1
    assert chosen(policy, candidates, asks(1, 2)) == "r0"
    assert chosen(policy, load(candidates, 1, 1), asks(1, 2)) == "r0"


def test_prefix_tree_leaves_a_replica_with_more_than_its_share() -> None:
    policy, candidates = PrefixTree(Draws()), loaded(0, 1, 1)
    assert chosen(policy, candidates, asks(1, 2)) == "r0"
    assert chosen(policy, load(candidates, 2, 2, 2), asks(1, 2)) == "r0"
    assert chosen(policy, load(candidates, 6, 1, 1), asks(1, 2)) != "r0"


def test_sglang_keeps_half_known_prompts_and_spreads_when_unbalanced() -> None:
    policy, candidates = SglangCacheAware(Draws()), loaded(0, 1)
    assert chosen(policy, candidates, asks(1, 2, 3, 4)) == "r0"
    load(candidates, 30, 1)
    assert chosen(policy, candidates, asks(1, 2, 3, 9)) == "r0", "3 of 4 blocks are there"
    assert chosen(policy, candidates, asks(1, 2, 8, 9)) == "r1", "half is not more than half"
    load(candidates, 34, 1)
    assert chosen(policy, candidates, asks(1, 2, 3, 4)) == "r1", "33 requests more"


def test_what_was_sent_is_bounded_by_the_cache_and_by_replicas() -> None:
    facts = ReplicaFacts(block_size=16, num_blocks=8)
    sent = Sent(max_replicas=2)
    for n in range(40):
        sent.note(view(f"r{n % 3}", facts=facts), range(5 * n, 5 * n + 5))
        assert len(sent) <= 2 * 8


def test_dynamo_adds_blocks_to_compute_and_blocks_in_use() -> None:
    policy = DynamoKv(Draws())
    candidates = [
        Candidate(view("r0", context=640), 320),  # 20 to compute + 40 in use
        Candidate(view("r1", prefill=160, context=160), 0),  # 40 + 10 + 10
        Candidate(view("r2", context=304), 0),  # 40 + 19
    ]
    found = policy.choose(asks(), 640, candidates)
    assert [score.cost for score in found.scores] == [60.0, 60.0, 59.0]
    assert found.replica == "r2"


def test_short_turns_do_not_pile_up_where_their_prefix_is() -> None:
    """ai-dynamo/dynamo#12300: requests that run were missing from the score."""
    for name in ("dynamo_kv", "lmetric", "predicted_ttft"):
        candidates = [Candidate(view("r0", decoding=40, context=12_000), 512), *idle(3)[1:]]
        assert chosen(build_policy(name), candidates) != "r0", name


def test_lmetric_multiplies_prompt_tokens_by_requests() -> None:
    candidates = [
        Candidate(view("r0", outstanding=3), 512),  # 128 x 4
        Candidate(view("r1", prefill=100), 600),  # 140 x 1
        Candidate(view("r2"), 0),  # 640 x 1
    ]
    found = LMetric(Draws()).choose(asks(), 640, candidates)
    assert [score.cost for score in found.scores] == [512.0, 140.0, 640.0]
    assert found.replica == "r1"


def test_llm_d_sticks_until_the_queue_there_is_longer_by_the_penalty() -> None:
    policy = LlmDSticky(Draws())
    allowed = int(MAX_PENALTY / COSTS.prefill_token)
    held = Candidate(view("r0", prefill=allowed), 600)
    assert chosen(policy, [held, *idle(3)[1:]]) == "r0"
    held.view.prefill_tokens += 1
    assert chosen(policy, [held, *idle(3)[1:]]) != "r0"


def test_llm_d_counts_less_than_four_fifths_only_as_work_saved() -> None:
    candidates = [Candidate(view("r0", prefill=500), 500), Candidate(view("r1", prefill=1), 0)]
    assert chosen(LlmDSticky(Draws()), candidates) == "r0", "500 + 140 to compute, not 641"
    candidates[1].view.prefill_tokens = 0
    assert len(set(chosen_often(LlmDSticky(Draws()), candidates))) == 2


def test_llm_d_scores_add_up() -> None:
    candidates = [
        Candidate(view("r0", outstanding=4), 640),
        Candidate(view("r1", outstanding=2, context=8000), 320),
        Candidate(view("r2"), 0),
    ]
    found = LlmDScores(Draws()).choose(asks(), 640, candidates)
    assert [score.cost for score in found.scores] == pytest.approx(
        [-(3 + 0 + 2), -(1.5 + 1 + 1), -(0 + 2 + 2)]
    )
    assert found.replica == "r0"
