"""Attempts that fail while their replicas live: retries, their budget, full replicas, ejection."""

from __future__ import annotations

from routing import R0, R1, R2, arrived, failed, places, ready_router, token

from headrace.core.router.events import (
    Fail,
    GoOn,
    Outputs,
    ReplicaJudged,
    ReplicaState,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.core.router.retries import RetryBudget
from headrace.machine import Tick
from headrace.types import FinishReason, RequestId

A = RequestId("a")
AT_ONCE = RouterLimits(retry_pause=0.0)


def test_a_retryable_failure_goes_to_a_replica_that_was_not_tried() -> None:
    router = ready_router(None, R0, R1, R2)
    router.handle(arrived("a"), 0.0)
    effects = router.handle(failed("a"), 1.0)
    assert effects[0] == GoOn(A, R0, "the test says so", 0)
    assert places(effects) == [("r2", "a~2")]
    assert places(router.handle(failed("a~2", at=R2), 2.0)) == [("r1", "a~3")]


def test_where_all_were_tried_one_is_tried_again() -> None:
    router = ready_router(AT_ONCE, R0)
    router.handle(arrived("a"), 0.0)
    assert places(router.handle(failed("a"), 1.0)) == [("r0", "a~2")]


def test_a_request_is_retried_twice_and_then_fails_with_what_was_said() -> None:
    router = ready_router(AT_ONCE, R0)
    router.handle(arrived("a"), 0.0)
    router.handle(failed("a"), 1.0)
    router.handle(failed("a~2"), 2.0)
    (fail,) = router.handle(failed("a~3", code="engine_fault"), 3.0)
    assert fail == Fail(A, "engine_fault", "the test says so", None)


def test_retries_are_a_share_of_requests_and_three() -> None:
    router = ready_router(RouterLimits(retry_share=0.1), R0, R1)
    num_retries = 0
    for index in range(100):
        ((place, attempt),) = places(router.handle(arrived(f"q{index}"), float(index)))
        effects = router.handle(failed(attempt, at=R0 if place == "r0" else R1), float(index))
        num_retries += any(isinstance(effect, GoOn) for effect in effects)
        for place, attempt in places(effects):
            router.handle(
                failed(attempt, at=R0 if place == "r0" else R1, retryable=False), float(index)
            )
    assert num_retries == 13


def test_streams_that_were_answered_go_on_however_many_break_at_once() -> None:
    router = ready_router(RouterLimits(retry_share=0.0), R0, R1)
    names = [f"q{index}" for index in range(20)]
    for name in names:
        router.handle(arrived(name), 0.0)
    for replica in (R0, R1):
        mine = names[0::2] if replica == R0 else names[1::2]
        router.handle(Outputs(replica, tuple(token(name, 1) for name in mine)), 1.0)
    moved = [router.handle(failed(name, at=R0), 2.0) for name in names[0::2]]
    assert [len(places(effects)) for effects in moved] == [1] * 10


def test_a_quiet_time_does_not_pay_for_a_storm() -> None:
    budget = RetryBudget(1.0)
    budget.earn(1_000_000)
    assert sum(budget.spend() for _ in range(2000)) == 1000


def test_a_full_replica_is_left_alone_for_as_long_as_it_says() -> None:
    router = ready_router(AT_ONCE, R0)
    router.handle(arrived("a"), 0.0)
    assert places(router.handle(failed("a", busy_for=4.0), 1.0)) == []
    assert router.next_wakeup() == 5.0
    assert places(router.handle(Tick(), 5.0)) == [("r0", "a~2")]
    assert router.state(R0) is ReplicaState.READY


def test_a_full_pool_says_when_its_replica_has_room() -> None:
    router = ready_router(RouterLimits(max_retries=0), R0)
    router.handle(arrived("a"), 0.0)
    assert router.handle(failed("a", busy_for=4.0), 1.0) == [
        Fail(A, "overloaded", "the test says so", 4.0)
    ]


def eject(router: Router, now: float) -> list[object]:
    """Let R0 fail until it is out; return the effects of the last failure."""
    for index in range(50):
        effects = router.handle(arrived(f"e{now}/{index}"), now)
        for place, attempt in places(effects):
            if place == "r0":
                effects = router.handle(failed(attempt, retryable=False, to_blame=True), now)
            else:
                done = token(attempt, finish=FinishReason.STOP)
                router.handle(Outputs(R1, (done,)), now)
        if router.state(R0) is ReplicaState.EJECTED:
            return list(effects)
    raise AssertionError("never ejected")


def test_a_replica_that_fails_three_times_before_any_success_is_out_for_a_while() -> None:
    router = ready_router(None, R0, R1)
    judged = eject(router, 1.0)[-1]
    assert judged == ReplicaJudged(
        R0,
        ReplicaState.EJECTED,
        "out for 10 s: 3 failures in a row, last: the test says so",
    )
    later = [place for n in range(4) for place in places(router.handle(arrived(f"x{n}"), 2.0))]
    assert {replica for replica, _ in later} == {"r1"}
    assert router.next_wakeup() == 11.0
    (judged,) = router.handle(Tick(), 11.0)
    assert judged == ReplicaJudged(R0, ReplicaState.PROBING, "its time out is over")


def test_a_probed_replica_gets_one_request_at_a_time_until_one_succeeds() -> None:
    router = ready_router(None, R0, R1)
    eject(router, 1.0)
    router.handle(Tick(), 11.0)
    found = [place for n in range(6) for place in places(router.handle(arrived(f"x{n}"), 12.0))]
    probes = [attempt for place, attempt in found if place == "r0"]
    assert len(probes) == 1
    done = token(probes[0], finish=FinishReason.STOP)
    effects = router.handle(Outputs(R0, (done,)), 13.0)
    assert effects[-1] == ReplicaJudged(R0, ReplicaState.READY, "a request succeeded")


def test_a_failed_probe_is_out_for_twice_as_long() -> None:
    router = ready_router(None, R0, R1)
    eject(router, 1.0)
    router.handle(Tick(), 11.0)
    router.handle(arrived("y"), 12.0)
    found = places(router.handle(arrived("x"), 12.0))
    router.handle(failed(dict(found).get("r0", "y"), to_blame=True), 13.0)
    assert router.state(R0) is ReplicaState.EJECTED
    assert router.next_wakeup() == 33.0


def test_the_only_replica_is_never_ejected() -> None:
    router = ready_router(None, R0)
    for index in range(20):
        router.handle(arrived(f"q{index}"), 0.0)
        router.handle(failed(f"q{index}", retryable=False, to_blame=True), 0.0)
    assert router.state(R0) is ReplicaState.READY
