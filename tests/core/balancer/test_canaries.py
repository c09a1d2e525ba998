"""A fixed share of requests for replicas that are being tried."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.balancer.canaries import Canaries, point_of
from headrace.core.balancer.policy import Candidate, ReplicaFacts, ReplicaView
from headrace.core.balancer.round_robin import RoundRobin
from headrace.types import ReplicaId, Request, RequestId

STABLE, OTHER = ReplicaId("stable"), ReplicaId("other")
TRIED, SECOND = ReplicaId("tried"), ReplicaId("second")


def candidate(replica: ReplicaId, canary: float = 0.0) -> Candidate:
    facts = ReplicaFacts(canary=canary)
    return Candidate(ReplicaView(replica=replica, progress_at=0.0, facts=facts), 0)


def request(number: int, session: str = "", tenant: str = "default") -> Request:
    name = RequestId(f"request-{number}")
    return Request(id=name, prompt=(), max_tokens=8, session=session, tenant=tenant)


def replica_of(policy: Canaries, asked: Request, *given: Candidate) -> ReplicaId:
    return policy.choose(asked, 9, given).replica


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 1.0])
def test_the_share_is_kept(share: float) -> None:
    policy = Canaries(RoundRobin())
    given = (candidate(STABLE), candidate(OTHER), candidate(TRIED, share))
    counts = Counter(replica_of(policy, request(i), *given) for i in range(10_000))
    assert counts[TRIED] == pytest.approx(10_000 * share, rel=0.15, abs=15)
    assert counts[STABLE] == pytest.approx(counts[OTHER], rel=0.05, abs=1)


def test_two_canaries_have_a_share_each() -> None:
    policy = Canaries(RoundRobin())
    given = (candidate(STABLE), candidate(TRIED, 0.1), candidate(SECOND, 0.3))
    counts = Counter(replica_of(policy, request(i), *given) for i in range(10_000))
    assert counts[TRIED] == pytest.approx(1000, rel=0.1)
    assert counts[SECOND] == pytest.approx(3000, rel=0.1)


@given(st.integers(0, 10_000), st.text(min_size=1), st.floats(0.01, 0.99))
def test_a_session_stays_where_it_is(number: int, session: str, share: float) -> None:
    policy = Canaries(RoundRobin())
    given = (candidate(STABLE), candidate(TRIED, share))
    first = replica_of(policy, request(number, session), *given)
    assert replica_of(policy, request(number + 1, session), *given) == first


def test_sessions_of_two_tenants_are_two() -> None:
    points = {point_of(request(0, "s", tenant)) for tenant in ("a", "b")}
    assert len(points) == 2


def test_a_canary_that_is_not_there_leaves_its_requests_to_the_others() -> None:
    policy = Canaries(RoundRobin())
    for number in range(50):
        replica_of(policy, request(number), candidate(STABLE), candidate(TRIED, 0.5))
        assert replica_of(policy, request(number), candidate(STABLE)) == STABLE


def test_a_second_canary_does_not_take_what_was_the_first_ones() -> None:
    policy = Canaries(RoundRobin())
    both = (candidate(STABLE), candidate(TRIED, 0.2), candidate(SECOND, 0.2))
    chosen = {i: replica_of(policy, request(i), *both) for i in range(500)}
    without = (both[0], both[2])
    for number, replica in chosen.items():
        expected = STABLE if replica == TRIED else replica
        assert replica_of(policy, request(number), *without) == expected


def test_where_nobody_else_can_the_canary_takes_all() -> None:
    policy = Canaries(RoundRobin())
    assert {replica_of(policy, request(i), candidate(TRIED, 0.01)) for i in range(50)} == {TRIED}
