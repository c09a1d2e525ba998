"""What the Router believes of prefix caches, by examples of events."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from routing import FACTS, R0, R1, failed, ready_router, request, token

from headrace.core.balancer.policy import Candidate, Choice, ReplicaFacts
from headrace.core.balancer.predicted_ttft import PredictedTtft
from headrace.core.kvcache.chain import chain_root, prompt_chain
from headrace.core.router.events import (
    ClientGone,
    Deliver,
    Dispatch,
    DrainReplica,
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
from headrace.core.router.knowledge import MEMORY, KvKnowledge
from headrace.core.router.limits import RouterLimits
from headrace.core.router.prefixes import ASSUMED_BLOCKS
from headrace.core.router.requests import keys_of
from headrace.types import FinishReason, Output, ReplicaId, Request, RequestId, block_key

if TYPE_CHECKING:
    from headrace.core.router.events import RouterEffect, RouterEvent
    from headrace.core.router.machine import Router

CHAIN = tuple(bytes([index]) * 32 for index in range(1, 5))
KEYS = tuple(block_key(digest) for digest in CHAIN)
PROMPT = tuple(range(70))  # four blocks of 16, and six tokens


def test_the_key_of_a_digest_is_its_first_eight_bytes() -> None:
    assert keys_of(CHAIN) == KEYS
    assert keys_of(()) == ()
    assert keys_of([bytes(range(16)), bytes(range(8, 24))]) == (
        block_key(bytes(range(8))),
        block_key(bytes(range(8, 16))),
    )


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
        KnowledgeChanged(R0, KvKnowledge.DEGRADED, "change 2 was missed"),
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


def test_one_that_cannot_list_its_blocks_is_not_asked_and_taken_to_hold_what_is_sent_there() -> (
    None
):
    policy = Watching()
    facts = replace(FACTS, lists_blocks=False)
    believing = RouterLimits(discount_claims=False)
    router = ready_router(believing, R0, policy=policy, facts=facts)
    assert router.handle(KvReported(R0, 5, KEYS[:1], ()), 1.0) == [
        KnowledgeChanged(R0, KvKnowledge.DEGRADED, "changes 1 to 4 were missed"),
    ]
    assert router.handle(ReplicaBeat(R0), 9.0) == []
    assert cached(router, policy, "a") == {"r0": 16}
    assert cached(router, policy, "b") == {"r0": 64}
    router.handle(KvReported(R0, 6, (), KEYS[2:]), 1.0)  # what it says is truer
    assert cached(router, policy, "c") == {"r0": 32}
    router.handle(KvListed(R0, 7, KEYS[:1]), 1.0)
    assert cached(router, policy, "d") == {"r0": 16}
    assert cached(router, policy, "e") == {"r0": 16}  # it is known again: nothing is assumed


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


def test_late_reports_of_an_earlier_life_are_ignored() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(ReplicaReady(R0, FACTS, epoch=2), 1.0)
    router.handle(KvListed(R0, 9, KEYS, epoch=1), 2.0)
    router.handle(KvReported(R0, 10, KEYS, (), epoch=1), 2.0)
    assert knowledge(router) is KvKnowledge.APPROXIMATE
    router.handle(KvReported(R0, 1, KEYS[:1], (), epoch=2), 3.0)
    assert knowledge(router) is KvKnowledge.EXACT
    assert cached(router, policy) == {"r0": 16}


def test_a_restart_that_nobody_told_of_makes_all_void_at_once() -> None:
    """The symptom of llm-d-router#2853: an index that keeps a restarted engine's blocks."""
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 40, KEYS, epoch=1), 1.0)
    assert cached(router, policy, "before") == {"r0": 64}
    router.handle(KvReported(R0, 1, KEYS[:1], (), epoch=2), 2.0)
    assert cached(router, policy, "after") == {"r0": 16}
    assert knowledge(router) is KvKnowledge.EXACT


def test_what_it_says_before_it_is_asked_for_everything_is_kept() -> None:
    """The symptom of dynamo#11190: a listing that is older than the changes erased these."""
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 4, KEYS[:2]), 1.0)
    router.handle(KvReported(R0, 5, KEYS[2:], ()), 2.0)
    router.handle(KvListed(R0, 4, KEYS[:2]), 3.0)
    assert cached(router, policy) == {"r0": 64}


def test_a_beat_tells_of_a_change_that_was_left_out() -> None:
    router = ready_router(None, R0)
    router.handle(KvListed(R0, 4, KEYS), 1.0)
    assert router.handle(ReplicaBeat(R0, kv_changes=4), 2.0) == []
    assert router.handle(ReplicaBeat(R0, kv_changes=5), 3.0) == [
        WantSnapshot(R0),
        KnowledgeChanged(R0, KvKnowledge.DEGRADED, "change 5 was told of, and did not come"),
    ]


def answer(router: Router, name: str, found: int | None, at: float = 1.0) -> list[RouterEffect]:
    """Ask with PROMPT; its replica says how much of it was cached. Return what else happens."""
    router.handle(RequestArrived((request(name, prompt=PROMPT, chain=CHAIN),)), at)
    output = Output(RequestId(name), (7,), FinishReason.STOP, found)
    effects = router.handle(Outputs(R0, (output,)), at)
    return [effect for effect in effects if not isinstance(effect, Deliver)]


def test_claims_that_do_not_come_true_are_believed_in_the_measured_share() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 4, KEYS), 1.0)
    said = [answer(router, f"q{index}", 32) for index in range(4)]
    assert policy.seen == {"r0": 64}
    assert said == [
        [],
        [],
        [],
        [
            KnowledgeChanged(
                R0, KvKnowledge.DEGRADED, "50% of what 4 requests should find was there"
            )
        ],
    ]
    (figures,) = router.figures(1.0).replicas
    assert figures.accuracy == pytest.approx(0.5)
    assert cached(router, policy) == {"r0": 32}


def test_without_discounts_claims_are_measured_and_believed() -> None:
    policy = Watching()
    router = ready_router(RouterLimits(discount_claims=False), R0, policy=policy)
    router.handle(KvListed(R0, 4, KEYS), 1.0)
    for index in range(4):
        answer(router, f"q{index}", 32)
    assert knowledge(router) is KvKnowledge.DEGRADED
    assert cached(router, policy) == {"r0": 64}


def test_a_discount_does_not_feed_on_itself() -> None:
    """Held against what was found is what the index says, not what was made of it."""
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 4, KEYS), 1.0)
    for index in range(40):
        answer(router, f"q{index}", 32)
    assert cached(router, policy) == {"r0": 32}


def test_a_replica_is_believed_again_when_claims_come_true_or_are_long_past() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 4, KEYS), 1.0)
    for index in range(4):
        answer(router, f"wrong{index}", 0)
    assert knowledge(router) is KvKnowledge.DEGRADED
    exact = KnowledgeChanged(R0, KvKnowledge.EXACT, "its changes are followed from number 4 on")
    assert router.handle(ReplicaBeat(R0), 1.0 + MEMORY) == [exact]
    for index in range(4):
        answer(router, f"again{index}", 0, at=70.0)
    assert knowledge(router) is KvKnowledge.DEGRADED
    news = [answer(router, f"right{index}", 64, at=71.0) for index in range(80)]
    assert [each for each in news if each] == [[exact]]
    assert cached(router, policy) == {"r0": 64}


def test_what_was_never_looked_up_proves_nothing() -> None:
    router = ready_router(None, R0)
    router.handle(KvListed(R0, 4, KEYS), 1.0)
    for index in range(8):
        router.handle(RequestArrived((request(f"q{index}", prompt=PROMPT, chain=CHAIN),)), 1.0)
        late = Output(RequestId(f"q{index}"), (), FinishReason.DEADLINE, 0)
        router.handle(Outputs(R0, (late,)), 1.0)
    assert knowledge(router) is KvKnowledge.EXACT


def test_a_replica_that_tells_nothing_of_its_blocks_is_measured_by_its_answers() -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    answer(router, "first", 0)
    for index in range(4):
        answer(router, f"silent{index}", None)
    assert policy.seen == {"r0": 64}
    for index in range(4):
        answer(router, f"says{index}", 16)
    assert cached(router, policy) == {"r0": 16}
    assert knowledge(router) is KvKnowledge.APPROXIMATE


@pytest.mark.parametrize(
    "end",
    [
        failed("a", retryable=False),
        ClientGone((RequestId("a"),)),
        Outputs(R0, (Output(RequestId("a"), (), FinishReason.ERROR, 0),)),
        DrainReplica(R0, 0.0),
    ],
)
def test_what_a_prompt_was_to_leave_is_not_expected_once_it_ends(end: RouterEvent) -> None:
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 4, ()), 1.0)
    router.handle(RequestArrived((request("a", prompt=PROMPT, chain=CHAIN),)), 1.0)
    assert len(router._fleet.prefixes.index) == len(KEYS)
    router.handle(end, 2.0)
    assert len(router._fleet.prefixes.index) == 0
    router.check_integrity()


def test_a_block_that_is_evicted_while_a_prompt_needs_it_is_expected_until_the_first_token() -> (
    None
):
    policy = Watching()
    router = ready_router(None, R0, policy=policy)
    router.handle(KvListed(R0, 4, KEYS), 1.0)
    router.handle(RequestArrived((request("a", prompt=PROMPT, chain=CHAIN),)), 1.0)
    router.handle(KvReported(R0, 5, (), KEYS), 2.0)
    assert cached(router, policy, "meanwhile") == {"r0": 64}
    router.handle(Outputs(R0, (token("a"),)), 3.0)
    assert cached(router, policy, "later") == {"r0": 0}


def salted(name: str, tenant: str) -> Request:
    root = chain_root(salt=tenant.encode(), model_identity="m", block_size=16)
    chain = prompt_chain(root, PROMPT, 16)
    return Request(
        id=RequestId(name), prompt=PROMPT, max_tokens=4, chain=chain, chain_root=root, tenant=tenant
    )


@pytest.mark.parametrize("tells", [True, False])
def test_two_tenants_with_one_prompt_never_share_an_entry(tells: bool) -> None:
    policy = Watching()
    router = ready_router(None, R0, R1, policy=policy)
    for replica in (R0, R1) if tells else ():
        router.handle(KvListed(replica, 1, ()), 0.0)
    ours = keys_of(salted("", "red").chain)
    assert not set(ours) & set(keys_of(salted("", "blue").chain))
    router.handle(RequestArrived((salted("a", "red"),)), 1.0)
    if tells:
        router.handle(KvReported(R0, 2, ours, ()), 1.0)
    router.handle(RequestArrived((salted("b", "blue"),)), 1.0)
    assert policy.seen == {"r0": 0, "r1": 0}, "where red's prompt is shows in blue's placement"
    router.handle(RequestArrived((salted("c", "red"),)), 1.0)
    assert policy.seen == {"r0": 64, "r1": 0}


def test_where_a_tenants_cold_prompt_goes_says_nothing_of_another_tenants() -> None:
    """Ties are broken by the prompt's first block, which is salted too."""
    places: dict[str, list[str]] = {"red": [], "blue": []}
    for number in range(32):
        for tenant, found in places.items():
            router = ready_router(None, R0, R1, policy=PredictedTtft())
            salt = f"{number}".encode() + tenant.encode()
            root = chain_root(salt=salt, model_identity="m", block_size=16)
            chain = prompt_chain(root, PROMPT, 16)
            (dispatch,) = router.handle(
                RequestArrived((request("a", prompt=PROMPT, chain=chain),)), 0.0
            )
            assert isinstance(dispatch, Dispatch)
            found.append(str(dispatch.replica))
    same = sum(red == blue for red, blue in zip(*places.values(), strict=True))
    assert 6 <= same <= 26, "as good as random"


def test_what_is_assumed_goes_in_the_order_of_its_age_and_is_bounded() -> None:
    policy = Watching()
    facts = ReplicaFacts(block_size=64)  # a foreign replica: it says nothing of its cache
    router = ready_router(None, R0, policy=policy, facts=facts)
    index = router._fleet.prefixes.index
    for number in range(ASSUMED_BLOCKS // 200):
        chain = tuple(number.to_bytes(4, "little") + bytes([n]) * 28 for n in range(256))
        chain = tuple(sha256(digest).digest() for digest in chain)
        router.handle(RequestArrived((request(f"q{number}", prompt=(), chain=chain),), 9999), 0.0)
        router.handle(Outputs(R0, (token(f"q{number}", finish=FinishReason.STOP),)), 0.0)
        if number == 0:
            oldest = keys_of(chain)
    assert len(index) == ASSUMED_BLOCKS
    assert index.match(oldest, 1) == {}
    assert index.match(keys_of(chain), 1) == {R0: 256}
