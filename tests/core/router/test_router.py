"""The Router by examples: admission, order, deadlines, the whole drain, progress.

tests/property has the state machine.
"""

from __future__ import annotations

import pytest
from routing import R0, R1, arrived, failed, places, ready_router, report, token

from headrace.core.router.events import (
    CancelAt,
    ClientGone,
    Deliver,
    Dispatch,
    Drain,
    Drained,
    Fail,
    LoadReported,
    Outputs,
    ReplicaLost,
    ReplicaReady,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.machine import Tick
from headrace.types import FinishReason, RequestId

OFF = RouterLimits(max_migrations=0)


def test_a_request_goes_to_the_replica_with_the_fewest_outstanding_requests() -> None:
    router = ready_router(None, R0, R1)
    assert places(router.handle(arrived("a"), 1.0)) == [("r0", "a")]
    assert places(router.handle(arrived("b"), 1.0)) == [("r1", "b")]
    router.handle(Outputs(R0, (token("a", finish=FinishReason.STOP),)), 2.0)
    assert places(router.handle(arrived("c"), 3.0)) == [("r0", "c")]


def test_a_dispatch_says_why_there() -> None:
    (dispatch,) = ready_router().handle(arrived("a"), 0.0)
    assert isinstance(dispatch, Dispatch)
    assert str(dispatch.choice.reason) == "0 requests there, the fewest"
    assert [score.replica for score in dispatch.choice.scores] == [R0]


def test_the_choices_of_one_request_go_to_one_replica() -> None:
    router = ready_router(None, R0, R1)
    found = places(router.handle(arrived("a#0", "a#1", "a#2"), 0.0))
    assert found == [("r0", "a#0"), ("r0", "a#1"), ("r0", "a#2")]


def test_requests_wait_until_a_replica_is_ready() -> None:
    router = Router()
    assert router.handle(arrived("a"), 0.0) == []
    assert router.num_waiting == 1
    assert places(router.handle(ReplicaReady(R0), 5.0)) == [("r0", "a")]


def test_requests_wait_in_order_while_the_replica_is_full() -> None:
    router = ready_router(RouterLimits(max_outstanding=1))
    router.handle(arrived("a"), 0.0)
    assert places(router.handle(arrived("b"), 1.0)) == []
    assert places(router.handle(arrived("c"), 1.0)) == []
    effects = router.handle(Outputs(R0, (token("a", finish=FinishReason.STOP),)), 2.0)
    assert isinstance(effects[0], Deliver)
    assert places(effects) == [("r0", "b")]


def test_a_request_that_waits_too_long_fails_and_says_when_to_try_again() -> None:
    router = Router(RouterLimits(max_wait=30.0))
    router.handle(arrived("a"), 1.0)
    assert router.next_wakeup() == 31.0
    assert router.handle(Tick(), 30.9) == []
    (fail,) = router.handle(Tick(), 31.0)
    assert fail == Fail(RequestId("a"), "not_ready", "no replica is ready; try again shortly", 5.0)
    assert router.next_wakeup() is None


def test_who_waits_for_a_replica_is_told_how_long_one_takes_to_start() -> None:
    router = Router(RouterLimits(max_waiting=1, start_seconds=12.5))
    router.handle(arrived("a"), 0.0)
    (fail,) = router.handle(arrived("b"), 1.0)
    assert isinstance(fail, Fail)
    assert fail.retry_after == 13.0
    assert fail.reason == "no replica is ready; one usually takes 12 s to start"


def test_a_full_queue_refuses_at_once() -> None:
    router = ready_router(RouterLimits(max_outstanding=1, max_waiting=2))
    for name in "abc":
        router.handle(arrived(name), 0.0)
    (fail,) = router.handle(arrived("d"), 4.0)
    assert isinstance(fail, Fail)
    assert (fail.code, fail.retry_after) == ("overloaded", 4.0)
    router.check_integrity()


def test_retry_after_is_the_time_that_the_queue_takes_to_leave() -> None:
    router = ready_router(RouterLimits(max_outstanding=1, max_waiting=9))
    for index in range(15):
        router.handle(arrived(f"q{index}"), 0.0)
    for index in range(5):  # one every 2 seconds
        router.handle(Outputs(R0, (token(f"q{index}", finish=FinishReason.STOP),)), 2.0 * index)
    for index in range(15, 21):
        effects = router.handle(arrived(f"q{index}"), 8.0)
    (fail,) = effects
    assert isinstance(fail, Fail)
    assert fail.retry_after == 20.0  # nine wait, and it would be the tenth


def test_a_group_larger_than_the_queue_is_taken_where_there_is_room() -> None:
    router = ready_router(RouterLimits(max_waiting=1))
    assert len(places(router.handle(arrived("a#0", "a#1", "a#2"), 0.0))) == 3


def test_with_migration_off_a_lost_replica_fails_its_requests_and_no_others() -> None:
    router = ready_router(OFF, R0, R1)
    router.handle(arrived("a"), 0.0)
    router.handle(arrived("b"), 0.0)
    _, fail = router.handle(ReplicaLost(R0, "reset"), 1.0)
    assert fail == Fail(RequestId("a"), "worker_lost", "replica r0 was lost: reset", 1.0)
    assert router.num_alive == 1


def test_a_client_that_leaves_is_cancelled_at_its_replica_and_gets_nothing_more() -> None:
    router = ready_router()
    router.handle(arrived("a"), 0.0)
    assert router.handle(ClientGone((RequestId("a"),)), 1.0) == [CancelAt(R0, RequestId("a"))]
    assert router.handle(Outputs(R0, (token("a"),)), 2.0) == []
    assert router.handle(ClientGone((RequestId("a"),)), 3.0) == []


def test_a_client_that_leaves_the_queue_leaves_no_trace() -> None:
    router = Router()
    router.handle(arrived("a#0", "a#1"), 0.0)
    assert router.handle(ClientGone((RequestId("a#0"), RequestId("a#1"))), 1.0) == []
    assert (router.num_alive, router.next_wakeup()) == (0, None)


def test_outputs_of_one_step_are_delivered_together() -> None:
    router = ready_router()
    router.handle(arrived("a"), 0.0)
    router.handle(arrived("b"), 0.0)
    outputs = (token("a"), token("b"))
    assert router.handle(Outputs(R0, outputs), 1.0) == [Deliver(outputs)]


def test_a_rejection_by_the_replica_fails_with_its_code() -> None:
    router = ready_router()
    router.handle(arrived("a"), 0.0)
    effects = router.handle(failed("a", code="invalid_request", retryable=False), 1.0)
    assert effects == [Fail(RequestId("a"), "invalid_request", "the test says so")]


def test_a_deadline_passes_in_the_queue() -> None:
    router = Router()
    router.handle(arrived("a", deadline=2.0), 0.0)
    assert router.next_wakeup() == 2.0
    (fail,) = router.handle(Tick(), 2.0)
    assert isinstance(fail, Fail)
    assert fail.code == "deadline_exceeded"


def test_a_deadline_at_a_replica_is_left_to_the_engine_for_a_moment() -> None:
    router = ready_router(RouterLimits(deadline_grace=2.0))
    router.handle(arrived("a", deadline=5.0), 0.0)
    assert router.handle(Tick(), 5.0) == []
    assert router.next_wakeup() == 7.0
    cancel, fail = router.handle(Tick(), 7.0)
    assert cancel == CancelAt(R0, RequestId("a"))
    assert isinstance(fail, Fail)
    assert fail.code == "deadline_exceeded"


def test_a_deadline_that_is_over_on_arrival_fails_at_once() -> None:
    (fail,) = ready_router().handle(arrived("a", deadline=1.0), 1.0)
    assert isinstance(fail, Fail)


def test_a_drain_refuses_new_requests_and_finishes_old_ones() -> None:
    router = ready_router()
    router.handle(arrived("a"), 0.0)
    assert router.handle(Drain(10.0), 1.0) == []
    (fail,) = router.handle(arrived("b"), 2.0)
    assert isinstance(fail, Fail)
    assert fail.code == "not_ready"
    _, drained = router.handle(Outputs(R0, (token("a", finish=FinishReason.STOP),)), 3.0)
    assert drained == Drained()
    assert router.next_wakeup() is None
    assert router.handle(Tick(), 20.0) == []


def test_a_drain_of_an_idle_router_is_over_at_once() -> None:
    assert ready_router().handle(Drain(10.0), 0.0) == [Drained()]


def test_a_drain_fails_what_is_left_at_its_limit() -> None:
    router = ready_router(RouterLimits(max_outstanding=1))
    router.handle(arrived("a"), 0.0)
    router.handle(arrived("b"), 0.0)
    router.handle(Drain(10.0), 0.0)
    assert router.next_wakeup() == 10.0
    effects = router.handle(Tick(), 10.0)
    assert effects[0] == CancelAt(R0, RequestId("a"))
    assert {e.request_id for e in effects if isinstance(e, Fail)} == {"a", "b"}
    assert effects[-1] == Drained()


@pytest.mark.parametrize(
    ("event", "progress_at"),
    [
        (Outputs(R0, ()), 9.0),
        (LoadReported(R0, report(step=2)), 9.0),
        (LoadReported(R0, report(step=1)), 2.0),
        (LoadReported(R0, report(step=1, running=0)), 9.0),
    ],
)
def test_progress_is_a_step_or_having_nothing_to_do(event: Outputs, progress_at: float) -> None:
    router = ready_router()
    router.handle(arrived("a"), 1.0)
    router.handle(LoadReported(R0, report(step=1)), 2.0)
    router.handle(event, 9.0)
    assert router.replicas[0].progress_at == progress_at


def test_the_time_without_progress_begins_with_the_first_request() -> None:
    router = ready_router()
    router.handle(arrived("a"), 100.0)
    assert router.replicas[0].progress_at == 100.0
    router.handle(arrived("b"), 105.0)
    assert router.replicas[0].progress_at == 100.0


def test_loads_of_unknown_replicas_are_ignored() -> None:
    assert Router().handle(LoadReported(R0, report(step=1)), 0.0) == []


def test_deadlines_of_ended_requests_do_not_pile_up() -> None:
    router = ready_router()
    for index in range(1000):
        router.handle(arrived(f"q{index}", deadline=1e6), float(index))
        router.handle(ClientGone((RequestId(f"q{index}"),)), float(index))
        router.check_integrity()
