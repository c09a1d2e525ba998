"""What the Router believes of prefix caches, by examples of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routing import FACTS, R0, R1, ready_router, request, token

from headrace.core.balancer.policy import Candidate, Choice, ReplicaFacts
from headrace.core.router.events import (
    Dispatch,
    KnowledgeChanged,
    KvListed,
    KvReported,
    Outputs,
    PolicyFailed,
    ReplicaBeat,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
    WantSnapshot,
)
from headrace.core.router.knowledge import KvKnowledge
from headrace.core.router.requests import keys_of
from headrace.types import FinishReason, ReplicaId, Request, RequestId, block_key

if TYPE_CHECKING:
    from headrace.core.router.machine import Router

CHAIN = tuple(bytes([index]) * 32 for index in range(1, 5))
KEYS = tuple(block_key(digest) for digest in CHAIN)
PROMPT = tuple(range(70))  # four blocks of 16, and six tokens


def test_the_key_of_a_digest_is_its_first_eight_bytes() -> None:
    assert keys_of(CHAIN) == KEYS
    assert keys_of(()) == ()


class Watching:
    """A policy that takes the first candidate and remembers what it saw."""

    name = "watching"

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def choose(self, request: Request, prompt_tokens: int, candidates: list[Candidate]) -> Choice:
        self.seen = {str(view.replica): cached for view, cached in candidates}
        return Choice(candidates[0].view.replica, "the first")


def cached(router: Router, policy: Watching, name: str = "probe") -> dict[str, int]:
    """What the policy is told of PROMPT now; the request ends at once."""
    chained = request(name, prompt=PROMPT, chain=CHAIN)
    effects = router.handle(RequestArrived((chained,)), 1.0)
    for effect in effects:
        if isinstance(effect, Dispatch):
            done = token(name, finish=FinishReason.STOP)
            router.handle(Outputs(effect.replica, (done,)), 1.0)
    return policy.seen


def knowledge(router: Router, replica: ReplicaId = R0) -> KvKnowledge:
    figures = {each.replica: each for each in router.figures(0.0).replicas}
    return figures[replica].knowledge


def test_a_replica_that_says_nothing_is_taken_to_hold_what_was_sent_there() -> None:
    policy = Watching()
    router = ready_router(None, R0, R1, policy=policy)
    assert cached(router, policy, "a") == {"r0": 0, "r1": 0}
    assert cached(router, policy, "b") == {"r0": 64, "r1": 0}
    assert knowledge(router) is KvKnowledge.APPROXIMATE


def test_what_is_assumed_of_a_replica_is_no_more_than_its_cache() -> None:
    policy = Watching()
    facts = ReplicaFacts(block_size=16, num_blocks=2)
    router = ready_router(None, R0, policy=policy, facts=facts)
    cached(router, policy, "a")
    assert cached(router, policy, "b") == {"r0": 32}
    router.check_integrity()


def test_a_foreign_replica_holds_a_share_of_the_estimated_prompt() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy, facts=ReplicaFacts())
    bytes_only = request("a", prompt=(), chain=CHAIN)
    router.handle(RequestArrived((bytes_only,), prompt_tokens=100), 0.0)
    other_end = (*CHAIN[:3], bytes(32))
    router.handle(RequestArrived((request("b", prompt=(), chain=other_end),), 100), 0.0)
    assert policy.seen == {"r0": 75}


def test_at_least_one_token_is_computed() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    whole = request("a", prompt=PROMPT[:64], chain=CHAIN)
    router.handle(RequestArrived((whole,)), 0.0)
    router.handle(RequestArrived((request("b", prompt=PROMPT[:64], chain=CHAIN),)), 0.0)
    assert policy.seen == {"r0": 63}
    assert router.replicas[0].prefill_tokens == 65


def test_changes_are_followed_from_the_first_on() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    cached(router, policy, "a")
    assert router.handle(KvReported(R0, 1, KEYS[:2], ()), 1.0) == [
        KnowledgeChanged(R0, KvKnowledge.EXACT, "its changes are followed from number 1 on")
    ]
    assert knowledge(router) is KvKnowledge.EXACT
    assert cached(router, policy, "b") == {"r0": 32}
    router.handle(KvReported(R0, 2, (), (KEYS[1],)), 1.0)
    assert cached(router, policy, "c") == {"r0": 16}


def test_a_gap_asks_for_everything_once() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvReported(R0, 1, KEYS[:1], ()), 1.0)
    assert router.handle(KvReported(R0, 3, (KEYS[2],), ()), 1.0) == [
        WantSnapshot(R0),
        KnowledgeChanged(R0, KvKnowledge.DEGRADED, "changes 2 to 2 were missed"),
    ]
    assert knowledge(router) is KvKnowledge.DEGRADED
    assert router.handle(KvReported(R0, 5, (), ()), 2.0) == []
    assert router.handle(KvListed(R0, 6, KEYS[:3]), 3.0) == [
        KnowledgeChanged(R0, KvKnowledge.EXACT, "its changes are followed from number 6 on")
    ]
    assert knowledge(router) is KvKnowledge.EXACT
    assert cached(router, policy) == {"r0": 48}
    assert router.handle(KvReported(R0, 7, (), ()), 3.0) == []


def test_a_listing_that_does_not_come_is_asked_for_again() -> None:
    router = ready_router(None, R0)
    assert WantSnapshot(R0) in router.handle(KvReported(R0, 5, (), ()), 1.0)
    assert router.handle(KvReported(R0, 6, (), ()), 5.9) == []
    assert router.handle(ReplicaBeat(R0), 6.0) == [WantSnapshot(R0)]


def test_what_was_said_before_changes_nothing() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 4, KEYS[:1]), 1.0)
    router.handle(KvReported(R0, 4, KEYS, ()), 1.0)
    router.handle(KvListed(R0, 3, KEYS), 1.0)
    assert cached(router, policy) == {"r0": 16}


def test_the_blocks_of_a_replica_that_died_are_void_at_once() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 4, KEYS), 1.0)
    router.handle(ReplicaLost(R0, "killed"), 2.0)
    assert router.handle(KvReported(R0, 5, KEYS, ()), 2.0) == []
    router.handle(ReplicaReady(R0, FACTS), 3.0)
    assert cached(router, policy) == {"r0": 0}


def test_a_prompt_under_way_counts_as_there_until_its_first_token() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 4, ()), 1.0)
    first = request("a", prompt=PROMPT, chain=CHAIN)
    router.handle(RequestArrived((first,)), 1.0)
    router.handle(RequestArrived((request("b", prompt=PROMPT, chain=CHAIN),)), 1.0)
    assert policy.seen == {"r0": 64}
    router.handle(Outputs(R0, (token("a"), token("b"))), 2.0)
    assert cached(router, policy, "c") == {"r0": 0}  # its blocks are said by KvReported
    router.check_integrity()


class Broken:
    """A policy that does what it was told to."""

    name = "broken"

    def __init__(self, answer: Choice | None) -> None:
        self._answer = answer

    def choose(self, request: Request, prompt_tokens: int, candidates: list[Candidate]) -> Choice:
        if self._answer is None:
            raise ZeroDivisionError("no tokens")
        return self._answer


def test_a_policy_that_raises_is_replaced_and_the_request_goes_on() -> None:
    router = ready_router(None, R0, policy=Broken(None))
    failure, dispatch = router.handle(RequestArrived((request("a"),)), 0.0)
    assert failure == PolicyFailed("broken", "ZeroDivisionError: no tokens")
    assert isinstance(dispatch, Dispatch)
    assert router.policy == "least_requests"
    (dispatch,) = router.handle(RequestArrived((request("b"),)), 0.0)
    assert isinstance(dispatch, Dispatch)


def test_a_policy_that_answers_with_nonsense_is_replaced_too() -> None:
    router = ready_router(None, R0, policy=Broken(Choice(R1, "because")))
    failure, dispatch = router.handle(RequestArrived((request("a"),)), 0.0)
    assert failure == PolicyFailed("broken", "it chose r1, which is no candidate")
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.replica, dispatch.client_id) == (R0, RequestId("a"))
