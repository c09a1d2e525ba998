"""Replicas for prompts and replicas for decodes, by examples."""

from __future__ import annotations

from dataclasses import replace

from routing import FACTS, R0, R1, R2, delivered, failed, places, token

from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.events import (
    CancelAt,
    Dispatch,
    GoOn,
    KvListed,
    Outputs,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
    RouterEffect,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.types import FinishReason, KvSource, ReplicaId, Request, RequestId, Role, block_key

PROMPT = tuple(range(200))
CHAIN = prompt_chain(b"root".ljust(32), PROMPT, FACTS.block_size)
ROLES = {R0: Role.PREFILL, R1: Role.DECODE, R2: Role.DECODE}


def pool(limits: RouterLimits | None = None, roles: dict[ReplicaId, Role] = ROLES) -> Router:
    router = Router(limits)
    for replica, role in roles.items():
        facts = replace(FACTS, role=role, lends_at=f"{replica}.kv", peer_block_seconds=1e-5)
        router.handle(ReplicaReady(replica, facts), 0.0)
    return router


def ask(router: Router, name: str, *, max_tokens: int = 9) -> list[RouterEffect]:
    request = Request(id=RequestId(name), prompt=PROMPT, max_tokens=max_tokens, chain=CHAIN)
    return list(router.handle(RequestArrived((request,)), 0.0))


def test_a_prompt_goes_to_its_role_and_is_handed_over_behind_its_first_token():
    router = pool()
    assert places(ask(router, "a")) == [("r0", "a")]
    deliver, go_on, cancel, dispatch = router.handle(Outputs(R0, (token("a", 7),)), 1.0)
    assert delivered([deliver]) == [("a", (7,))]
    assert go_on == GoOn(RequestId("a"), R0, "its prompt is computed", 1, planned=True)
    assert cancel == CancelAt(R0, RequestId("a"))
    assert isinstance(dispatch, Dispatch)
    assert dispatch.replica in (R1, R2)
    assert dispatch.request.prompt == (*PROMPT, 7)
    assert dispatch.request.num_prior == 1
    assert dispatch.request.source == KvSource(R0, "r0.kv", 200 // 16)
    router.check_integrity()


def test_what_the_first_replica_still_draws_reaches_nobody():
    router = pool()
    ask(router, "a")
    router.handle(Outputs(R0, (token("a", 7),)), 1.0)
    assert router.handle(Outputs(R0, (token("a", 99),)), 1.1) == []
    busy = next(view.replica for view in router.replicas if view.outstanding)
    effects = router.handle(Outputs(busy, (token("a~2", 8),)), 2.0)
    assert delivered(effects) == [("a", (8,))]


def test_an_answer_of_one_token_stays():
    router = pool()
    ask(router, "a", max_tokens=1)
    effects = router.handle(Outputs(R0, (token("a", 7, finish=FinishReason.LENGTH),)), 1.0)
    assert places(effects) == []
    assert router.num_alive == 0


def test_a_hand_over_does_not_count_as_a_loss():
    router = pool(RouterLimits(max_migrations=0))
    ask(router, "a")
    effects = router.handle(Outputs(R0, (token("a", 7),)), 1.0)
    assert [attempt for _, attempt in places(effects)] == ["a~2"]


def test_prompts_wait_for_their_role_when_it_is_full():
    router = pool(RouterLimits(max_outstanding=1))
    ask(router, "a")
    assert places(ask(router, "b")) == []
    effects = router.handle(Outputs(R0, (token("a", 7),)), 1.0)
    assert [attempt for _, attempt in places(effects)] == ["a~2", "b"]


def test_a_prompt_that_failed_is_tried_at_another_of_its_role_and_else_at_the_same():
    roles = {R0: Role.PREFILL, R1: Role.PREFILL, R2: Role.DECODE}
    router = pool(RouterLimits(retry_pause=0.0, local_prefill=0), roles)
    (first,) = places(ask(router, "a"))
    (second,) = places(router.handle(failed("a", at=ReplicaId(first[0])), 1.0))
    assert {first[0], second[0]} == {"r0", "r1"}
    (third,) = places(router.handle(failed("a~2", at=ReplicaId(second[0])), 2.0))
    assert third[0] in ("r0", "r1")


def test_without_a_living_replica_of_a_role_another_does_its_work():
    router = pool()
    router.handle(ReplicaLost(R0, "reset"), 0.0)
    (dispatch,) = ask(router, "a")
    assert isinstance(dispatch, Dispatch)
    assert dispatch.replica in (R1, R2)
    router = pool(roles={R0: Role.PREFILL})
    ask(router, "a")
    effects = router.handle(Outputs(R0, (token("a", 7),)), 1.0)
    assert [type(effect).__name__ for effect in effects] == ["Deliver"]  # it goes on there
    router.handle(ReplicaReady(R1, replace(FACTS, role=Role.DECODE)), 2.0)
    effects = router.handle(Outputs(R0, (token("a", 8),)), 3.0)
    assert places(effects) == [("r1", "a~2")]


def test_a_stream_that_loses_its_decode_replica_goes_on_at_another():
    router = pool()
    ask(router, "a")
    router.handle(Outputs(R0, (token("a", 7),)), 1.0)
    busy = next(view.replica for view in router.replicas if view.outstanding)
    effects = router.handle(ReplicaLost(busy, "reset"), 2.0)
    assert places(effects) == [("r2" if busy == R1 else "r1", "a~3")]


def test_a_prompt_that_a_decode_replica_nearly_has_stays_there():
    router = pool()
    router.handle(KvListed(R2, 1, tuple(map(block_key, CHAIN))), 0.0)
    assert places(ask(router, "a")) == [("r2", "a")]
    assert places(router.handle(Outputs(R2, (token("a", 7),)), 1.0)) == []
    router = pool(RouterLimits(local_prefill=0))
    router.handle(KvListed(R2, 1, tuple(map(block_key, CHAIN))), 0.0)
    (dispatch,) = ask(router, "a")
    assert isinstance(dispatch, Dispatch)
    assert dispatch.replica == R0
    assert dispatch.request.source == KvSource(R2, "r2.kv", len(CHAIN))


def test_mixed_replicas_take_everything_and_keep_it():
    router = pool(roles={R0: Role.MIXED, R1: Role.MIXED})
    ask(router, "a")
    busy = next(view.replica for view in router.replicas if view.outstanding)
    assert places(router.handle(Outputs(busy, (token("a", 7),)), 1.0)) == []
