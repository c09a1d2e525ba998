"""Targets for first tokens: who is refused at once, who never is, and who may try elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from routing import R0, R1, failed, places, ready_router, report, request, token

from headrace.core.router.events import (
    Dispatch,
    Fail,
    GoOn,
    LoadReported,
    Outputs,
    ReplicaLost,
    RequestArrived,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.errors import DeadlineInfeasible
from headrace.types import PriorityClass, ReplicaId, Request, RequestId

A = RequestId("a")
SECONDS_PER_TOKEN = 0.001


def train(router: Router, *replicas: ReplicaId, reports: int = 60) -> None:
    """Let replicas report steps of prompt tokens, a millisecond for each token."""
    for replica in replicas:
        computed = 0
        for step in range(1, reports + 1):
            computed += 256 if step % 2 else 32
            load = report(step=step, seconds=computed * SECONDS_PER_TOKEN, computed=computed)
            router.handle(LoadReported(replica, load), 0.0)


def asking(name: str, ttft: float | None, *, prompt: int = 100, **fields: object) -> Request:
    first = request(name, prompt=tuple(range(prompt)))
    return replace(first, first_token_by=ttft, **fields)  # type: ignore[arg-type]


def trained(*replicas: ReplicaId, limits: RouterLimits | None = None) -> Router:
    router = ready_router(limits, *replicas)
    train(router, *replicas)
    return router


def busy(*replicas: ReplicaId, **fields: object) -> Router:
    """Return a router with two seconds of work on each replica."""
    router = trained(*replicas)
    for replica in replicas:
        router.handle(RequestArrived((asking(f"w-{replica}", None, prompt=2000, **fields),)), 0.0)
    return router


def test_a_target_that_no_replica_can_keep_is_refused_at_once_with_when_to_come_back() -> None:
    router = busy(R0, R1)
    (fail,) = router.handle(RequestArrived((asking("a", 0.5),)), 0.0)
    assert isinstance(fail, Fail)
    assert (fail.request_id, fail.code) == (A, DeadlineInfeasible.code)
    assert "would come in about 2" in fail.reason
    assert "0.5 s are left for it" in fail.reason
    assert fail.retry_after == 2.0
    assert router.num_alive == 2
    router.check_integrity()


def test_a_target_that_one_replica_can_keep_is_placed() -> None:
    router = trained(R0, R1)
    router.handle(RequestArrived((asking("w", None, prompt=2000),)), 0.0)
    assert len(places(router.handle(RequestArrived((asking("a", 0.5),)), 0.0))) == 1


def test_choices_of_one_request_are_refused_together() -> None:
    router = busy(R0)
    effects = router.handle(RequestArrived((asking("a#0", 0.5), asking("a#1", 0.5))), 0.0)
    assert [fail.request_id for fail in effects if isinstance(fail, Fail)] == ["a#0", "a#1"]
    router.check_integrity()


def test_who_asks_for_nothing_waits_as_long_as_it_takes() -> None:
    assert len(places(busy(R0).handle(RequestArrived((asking("a", None),)), 0.0))) == 1


@pytest.mark.parametrize(
    ("theirs", "mine", "is_refused"),
    [
        (PriorityClass.BATCH, PriorityClass.INTERACTIVE, False),
        (PriorityClass.STANDARD, PriorityClass.STANDARD, True),
        (PriorityClass.INTERACTIVE, PriorityClass.BATCH, True),
    ],
)
def test_work_of_less_urgent_classes_is_no_reason_to_refuse(
    theirs: PriorityClass, mine: PriorityClass, is_refused: bool
) -> None:
    router = busy(R0, priority=theirs)
    effects = router.handle(RequestArrived((asking("a", 0.5, priority=mine),)), 0.0)
    assert isinstance(effects[0], Fail) is is_refused


def test_the_backlog_of_another_tenant_is_no_reason_to_refuse() -> None:
    router = busy(R0, tenant="crowd")
    assert places(router.handle(RequestArrived((asking("a", 0.5, tenant="me"),)), 0.0))


def test_nobody_is_refused_for_a_replica_that_was_hardly_seen() -> None:
    router = ready_router(None, R0)
    train(router, R0, reports=5)
    router.handle(RequestArrived((asking("w", None, prompt=2000),)), 0.0)
    assert places(router.handle(RequestArrived((asking("a", 0.001),)), 0.0)) == [("r0", "a")]


def test_refusals_can_be_switched_off() -> None:
    router = trained(R0, limits=RouterLimits(refuse_infeasible=False))
    router.handle(RequestArrived((asking("w", None, prompt=2000),)), 0.0)
    assert places(router.handle(RequestArrived((asking("a", 0.5),)), 0.0)) == [("r0", "a")]


def test_what_an_engine_refuses_is_tried_where_it_was_not_refused_yet_and_then_fails() -> None:
    router = ready_router(None, R0, R1)
    ((first, _),) = places(router.handle(RequestArrived((asking("a", 9.0),)), 0.0))
    other = R1 if first == "r0" else R0
    refusal = replace(
        failed("a", at=ReplicaId(first), code=DeadlineInfeasible.code), retry_after=3.5
    )
    effects = router.handle(refusal, 1.0)
    assert any(isinstance(effect, GoOn) for effect in effects)
    (sent,) = [effect for effect in effects if isinstance(effect, Dispatch)]
    assert (sent.replica, sent.request.first_token_by) == (other, 9.0)
    (fail,) = router.handle(replace(refusal, replica=other, request_id=RequestId("a~2")), 1.0)
    assert fail == Fail(A, DeadlineInfeasible.code, "the test says so", 4.0)
    router.check_integrity()


def test_what_the_only_replica_refuses_is_not_asked_of_it_again() -> None:
    router = ready_router(None, R0)
    router.handle(RequestArrived((asking("a", 9.0),)), 0.0)
    refusal = replace(failed("a", code=DeadlineInfeasible.code), retry_after=3.0)
    assert router.handle(refusal, 1.0) == [
        Fail(A, DeadlineInfeasible.code, "the test says so", 3.0)
    ]


def test_a_request_that_lost_its_replica_is_late_without_its_fault_and_asks_no_more() -> None:
    router = trained(R0, R1)
    ((first, _),) = places(router.handle(RequestArrived((asking("a", 0.5),)), 0.0))
    effects = router.handle(ReplicaLost(ReplicaId(first), "died"), 7.0)
    (sent,) = [effect for effect in effects if isinstance(effect, Dispatch)]
    assert sent.request.first_token_by is None


def test_a_stream_that_goes_on_elsewhere_does_not_ask_for_its_first_token_again() -> None:
    router = trained(R0, R1)
    ((first, _),) = places(router.handle(RequestArrived((asking("a", 0.5),)), 0.0))
    router.handle(Outputs(ReplicaId(first), (token("a"),)), 0.1)
    effects = router.handle(ReplicaLost(ReplicaId(first), "died"), 7.0)
    (sent,) = [effect for effect in effects if isinstance(effect, Dispatch)]
    assert (sent.request.first_token_by, sent.request.num_prior) == (None, 1)
