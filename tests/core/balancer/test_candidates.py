"""Candidates: the same as a list of them, whoever looks at how many."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.balancer.candidates import Candidates, as_candidates, takers_of
from headrace.core.balancer.policy import Candidate, ReplicaView
from headrace.types import ReplicaId

VIEWS = {
    ReplicaId(f"r{n}"): ReplicaView(replica=ReplicaId(f"r{n}"), progress_at=0.0) for n in range(12)
}


def candidates(num: int, cached: dict[str, int]) -> Candidates:
    held = {ReplicaId(name): tokens for name, tokens in cached.items()}
    return Candidates(takers_of(list(VIEWS.values())[:num]), held)


def test_they_are_a_sequence_in_the_order_of_the_views() -> None:
    found = candidates(3, {"r1": 32, "r9": 64})
    assert [(view.replica, cached) for view, cached in found] == [("r0", 0), ("r1", 32), ("r2", 0)]
    assert found[1] == found[-2] == Candidate(VIEWS[ReplicaId("r1")], 32)
    assert [each.cached_tokens for each in found[1:]] == [32, 0]
    assert len(found) == 3
    assert found.find(ReplicaId("r1")) == found[1]
    assert found.find(ReplicaId("r9")) is None, "it holds some of it, and takes nothing"


def test_holders_are_those_with_most_of_the_prompt() -> None:
    found = candidates(5, {"r1": 32, "r4": 48, "r9": 64, "r2": 16}).holders(2)
    assert [(view.replica, cached) for view, cached in found] == [("r4", 48), ("r1", 32)]


@given(
    num=st.integers(1, 12),
    wanted=st.integers(1, 14),
    turn=st.integers(0, 100),
    cached=st.dictionaries(st.integers(0, 11), st.integers(1, 99)),
)
def test_a_few_are_different_candidates_the_best_holders_first(
    num: int, wanted: int, turn: int, cached: dict[int, int]
) -> None:
    every = candidates(num, {f"r{n}": tokens for n, tokens in cached.items()})
    few = every.few(wanted, turn)
    names = [view.replica for view, _ in few]
    assert len(set(names)) == len(few) == min(wanted, num)
    assert all(each in list(every) for each in few)
    held = sorted((each.cached_tokens for each in every if each.cached_tokens), reverse=True)
    best = held[: min(wanted, num) // 2]
    assert [each.cached_tokens for each in few[: len(best)]] == best
    assert list(as_candidates(list(every))) == list(every)


def test_whoever_holds_nothing_comes_up_in_turn() -> None:
    seen = Counter(
        view.replica
        for turn in range(0, 120, 2)
        for view, _ in candidates(12, {"r3": 16}).few(4, turn)
    )
    assert len(seen) == 12
    assert seen[ReplicaId("r3")] == 60, "it holds some: it is always among them"
    assert min(seen.values()) >= 7
