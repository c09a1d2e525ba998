"""Policies that see loads, sessions or nothing: each by examples."""

from __future__ import annotations

from collections import Counter

from fleets import asks, chosen, chosen_often, idle, loaded, view

from headrace.core.balancer.bounded_hash import SLACK, BoundedHash
from headrace.core.balancer.draws import Draws
from headrace.core.balancer.least_requests import LeastRequests
from headrace.core.balancer.policy import Candidate
from headrace.core.balancer.power_of_two import PowerOfTwo
from headrace.core.balancer.random_replica import RandomReplica
from headrace.core.balancer.round_robin import RoundRobin
from headrace.core.balancer.session_affinity import SessionAffinity


def test_round_robin_takes_turns_whatever_the_load() -> None:
    candidates = [Candidate(view("r0", outstanding=9), 0), Candidate(view("r1"), 600)]
    policy = RoundRobin()
    assert [chosen(policy, candidates) for _ in range(4)] == ["r0", "r1", "r0", "r1"]


def test_least_requests_counts_and_equals_take_turns() -> None:
    policy, candidates = LeastRequests(), loaded(1, 0, 0)
    assert Counter(chosen(policy, candidates) for _ in range(6)) == {"r1": 3, "r2": 3}


def test_random_takes_each_as_often_whatever_the_load() -> None:
    counts = Counter(chosen_often(RandomReplica(Draws(7)), loaded(0, 50, 0, 50)))
    assert min(counts.values()) > 70


def test_power_of_two_never_takes_the_fullest_and_spreads_over_the_rest() -> None:
    counts = Counter(chosen_often(PowerOfTwo(Draws(7)), loaded(9, 1, 1, 0)))
    assert counts["r0"] == 0, "it is fuller than whoever is drawn beside it"
    assert counts["r3"] > counts["r1"] > 50
    assert counts["r2"] > 50


def test_power_of_two_of_one_or_two_replicas() -> None:
    assert chosen(PowerOfTwo(Draws()), loaded(3)) == "r0"
    assert set(chosen_often(PowerOfTwo(Draws()), loaded(3, 2))) == {"r1"}
    assert len(set(chosen_often(PowerOfTwo(Draws()), loaded(2, 2)))) == 2


def test_power_of_two_counts_what_it_has_just_sent() -> None:
    """vllm-project/router#177: by polled loads alone, eight of eight went to one."""
    candidates, policy = idle(8), PowerOfTwo(Draws(1))
    views = {str(candidate.view.replica): candidate.view for candidate in candidates}
    for _ in range(64):
        views[chosen(policy, candidates)].outstanding += 1
    assert max(each.outstanding for each in views.values()) <= 11


def test_a_session_stays_when_its_replica_is_the_fullest() -> None:
    policy = SessionAffinity(Draws())
    home = chosen(policy, idle(4), asks(session="s"))
    fullest = [Candidate(view(f"r{n}", outstanding=9 * (f"r{n}" == home)), 0) for n in range(4)]
    assert set(chosen_often(policy, fullest, asks(session="s"))) == {home}


def test_new_sessions_go_where_the_fewest_requests_are() -> None:
    policy, candidates = SessionAffinity(Draws()), loaded(3, 1, 0, 2)
    names = {chosen(policy, candidates, asks(session=f"s{n}")) for n in range(50)}
    assert names == {"r2"}


def test_without_a_session_the_beginning_of_the_prompt_is_one() -> None:
    policy, prompt = SessionAffinity(Draws()), asks(5, 6, 7)
    home = chosen(policy, idle(4), prompt)
    assert {chosen(policy, loaded(9, 9, 9, 9), prompt) for _ in range(9)} == {home}
    assert len(set(chosen_often(policy, idle(4), asks()))) == 4, "nothing to go back to"


def test_prompts_that_share_only_their_template_are_not_one_session() -> None:
    policy = SessionAffinity(Draws())
    homes = {chosen(policy, idle(4), asks(1, *range(n, n + 16))) for n in range(2, 60)}
    assert len(homes) == 4


def test_a_session_whose_replica_is_gone_moves_and_stays_there() -> None:
    policy, candidates = SessionAffinity(Draws()), idle(3)
    home = chosen(policy, candidates, asks(session="s"))
    others = [each for each in candidates if each.view.replica != home]
    second = chosen(policy, others, asks(session="s"))
    assert second != home
    assert chosen(policy, candidates, asks(session="s")) == second


def test_sessions_remembered_are_bounded_and_the_silent_ones_go_first() -> None:
    policy = SessionAffinity(Draws(), max_sessions=3)
    candidates = loaded(0, 1)
    for name in ("a", "b", "c", "a", "d"):
        chosen(policy, candidates, asks(session=name))
    assert policy.num_sessions == 3
    candidates = loaded(1, 0)
    assert chosen(policy, candidates, asks(session="a")) == "r0"
    assert chosen(policy, candidates, asks(session="b")) == "r1", "it was forgotten"


def test_bounded_hash_keeps_a_prompt_at_home_until_its_share_is_full() -> None:
    policy, prompt = BoundedHash(Draws()), asks(5)
    home = chosen(policy, idle(4), prompt)
    assert set(chosen_often(policy, idle(4), prompt)) == {home}
    full = [Candidate(view(f"r{n}", outstanding=9 * (f"r{n}" == home)), 0) for n in range(4)]
    assert home not in chosen_often(policy, full, prompt)


def test_bounded_hash_never_lets_one_prompt_fill_a_replica() -> None:
    """ai-dynamo/dynamo#737: a system prompt that all share sent everything to one of eight."""
    candidates, policy = idle(8), BoundedHash(Draws())
    views = {str(candidate.view.replica): candidate.view for candidate in candidates}
    for number in range(1, 161):
        views[chosen(policy, candidates, asks(5))].outstanding += 1
        most = max(each.outstanding for each in views.values())
        assert most <= -(-SLACK * number // len(views))


def test_bounded_hash_moves_only_the_keys_of_a_replica_that_goes() -> None:
    policy, prompts = BoundedHash(Draws()), [asks(n) for n in range(1, 200)]
    before = [chosen(policy, idle(5), prompt) for prompt in prompts]
    after = [chosen(policy, idle(4), prompt) for prompt in prompts]
    assert Counter(before).keys() == {"r0", "r1", "r2", "r3", "r4"}
    assert all(new == old for old, new in zip(before, after, strict=True) if old != "r4")
