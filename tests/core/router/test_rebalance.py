"""A replica that joins gets its share of what waits at the others, by examples."""

from __future__ import annotations

from routing import R0, R1, token

from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.router.events import (
    CancelAt,
    Dispatch,
    GoOn,
    Outputs,
    ReplicaReady,
    RequestArrived,
    RouterEffect,
)
from headrace.core.router.machine import Router
from headrace.types import Request, RequestId

BUDGET = 100
FACTS = ReplicaFacts(block_size=16, num_blocks=1000, max_num_batched_tokens=BUDGET)


def loaded(num_requests: int, *, facts: ReplicaFacts = FACTS) -> Router:
    """A router whose only replica has requests of 50 tokens; the first two were answered."""
    router = Router()
    router.handle(ReplicaReady(R0, facts), 0.0)
    for number in range(num_requests):
        prompt = tuple(range(number, number + 50))
        request = Request(id=RequestId(str(number)), prompt=prompt, max_tokens=8)
        router.handle(RequestArrived((request,)), 0.0)
    router.handle(Outputs(R0, (token("0", 1), token("1", 1))), 1.0)
    return router


def ids(effects: list[RouterEffect], kind: type[GoOn] | type[CancelAt]) -> list[str]:
    return [effect.request_id for effect in effects if isinstance(effect, kind)]


def test_the_newest_without_a_first_token_come_back_and_are_placed_anew() -> None:
    router = loaded(14)  # 12 wait: 600 tokens, of which 300 are an even share
    effects = list(router.handle(ReplicaReady(R1, FACTS), 2.0))
    newest = ["8", "9", "10", "11", "12", "13"]  # in the order in which they had come
    assert ids(effects, GoOn) == newest
    assert ids(effects, CancelAt) == newest
    places = {e.client_id: e.replica for e in effects if isinstance(e, Dispatch)}
    assert list(places) == newest
    assert set(places.values()) == {R1}
    router.check_integrity()


def test_what_two_steps_compute_stays() -> None:
    router = loaded(6)  # 4 wait: 200 tokens
    assert ids(list(router.handle(ReplicaReady(R1, FACTS), 2.0)), GoOn) == []


def test_replicas_that_do_not_say_what_a_step_computes_keep_all() -> None:
    router = loaded(14, facts=ReplicaFacts(block_size=16, num_blocks=1000))
    assert ids(list(router.handle(ReplicaReady(R1, FACTS), 2.0)), GoOn) == []


def test_a_request_that_came_back_counts_no_loss_and_may_return_where_it_was() -> None:
    router = loaded(14)
    effects = list(router.handle(ReplicaReady(R1, FACTS), 2.0))
    sent = {e.client_id: e.request.id for e in effects if isinstance(e, Dispatch)}
    effects = list(router.handle(Outputs(R1, (token(sent[RequestId("13")], 7),)), 3.0))
    assert router.num_alive == 14
    router.check_integrity()
