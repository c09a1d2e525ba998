"""Streams that outlive their replicas, by examples: death, silence, drains, and what is fenced."""

from __future__ import annotations

from routing import (
    R0,
    R1,
    R2,
    arrived,
    delivered,
    failed,
    places,
    ready_router,
    report,
    request,
    token,
)

from headrace.core.router.events import (
    CancelAt,
    ClientGone,
    Deliver,
    Dispatch,
    DrainReplica,
    Fail,
    GoOn,
    LoadReported,
    LoadSeen,
    Outputs,
    ReplicaBeat,
    ReplicaEmptied,
    ReplicaJudged,
    ReplicaLost,
    ReplicaReady,
    ReplicaState,
    RequestArrived,
    ResumeReplica,
)
from headrace.core.router.machine import RouterLimits
from headrace.machine import Tick
from headrace.types import FinishReason, Output, ReplicaId, RequestId

A = RequestId("a")


def test_a_stream_goes_on_elsewhere_behind_its_last_token() -> None:
    router = ready_router(None, R0, R1)
    router.handle(arrived("a", max_tokens=9), 0.0)
    router.handle(Outputs(R0, (token("a", 10, 11),)), 1.0)
    judged, go_on, dispatch = router.handle(ReplicaLost(R0, "reset"), 2.0)
    assert judged == ReplicaJudged(R0, ReplicaState.LOST, "reset")
    assert go_on == GoOn(A, R0, "reset", 2)
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.replica, dispatch.client_id) == (R1, A)
    sent = dispatch.request
    assert (sent.id, sent.prompt) == ("a~2", (1, 2, 10, 11))
    assert (sent.max_tokens, sent.num_prior) == (7, 2)


def test_the_client_knows_its_own_id_only() -> None:
    router = ready_router(None, R0, R1)
    router.handle(arrived("a", max_tokens=9), 0.0)
    router.handle(ReplicaLost(R0, "reset"), 2.0)
    effects = router.handle(Outputs(R1, (token("a~2", 5),)), 3.0)
    assert delivered(effects) == [("a", (5,))]
    effects = router.handle(Outputs(R1, (token("a~2", 6, finish=FinishReason.STOP),)), 4.0)
    assert delivered(effects) == [("a", (6,))]
    assert router.num_alive == 0


def test_what_an_attempt_says_after_it_was_given_up_reaches_nobody() -> None:
    router = ready_router(None, R0)
    router.handle(arrived("a"), 0.0)
    router.handle(ReplicaReady(R0), 1.0)  # it started anew: the same replica gets it again
    assert router.handle(Outputs(R0, (token("a", 99),)), 2.0) == []
    assert router.handle(failed("a"), 2.0) == []
    assert delivered(router.handle(Outputs(R0, (token("a~2", 5),)), 3.0)) == [("a", (5,))]


def test_those_that_come_back_go_before_those_that_wait_in_their_old_order() -> None:
    router = ready_router(RouterLimits(max_outstanding=3), R0)
    router.handle(arrived("a", "b"), 0.0)
    router.handle(arrived("c"), 0.0)
    router.handle(arrived("d"), 0.0)
    router.handle(ReplicaLost(R0, "reset"), 1.0)
    effects = router.handle(ReplicaReady(R1), 2.0)
    assert [attempt for _, attempt in places(effects)] == ["a~2", "b~2", "c~2"]


def test_who_comes_back_is_not_refused_by_a_full_queue() -> None:
    router = ready_router(RouterLimits(max_waiting=1, max_outstanding=2), R0)
    router.handle(arrived("a", "b"), 0.0)
    router.handle(arrived("c"), 0.0)
    effects = router.handle(ReplicaLost(R0, "reset"), 1.0)
    assert not [effect for effect in effects if isinstance(effect, Fail)]
    assert router.num_waiting == 3
    router.check_integrity()


def test_a_stream_that_waits_too_long_for_a_new_place_was_lost() -> None:
    router = ready_router(RouterLimits(max_wait=30.0), R0)
    router.handle(arrived("a"), 0.0)
    router.handle(Outputs(R0, (token("a"),)), 1.0)
    router.handle(ReplicaLost(R0, "reset"), 2.0)
    (fail,) = router.handle(Tick(), 32.0)
    assert isinstance(fail, Fail)
    assert fail.code == "worker_lost"


def test_a_request_that_loses_too_many_replicas_fails() -> None:
    router = ready_router(RouterLimits(max_migrations=2, poison_deaths=0), R0)
    router.handle(arrived("a"), 0.0)
    for number in range(3):
        effects = router.handle(ReplicaLost(R0, "it crashed"), 2.0 * number)
        assert any(isinstance(effect, GoOn) for effect in effects) == (number < 2)
        router.handle(ReplicaReady(R0), 2.0 * number + 1)
    assert effects[-1] == Fail(A, "worker_lost", "replica r0 was lost: it crashed", 1.0)


def test_a_stream_of_which_only_the_end_was_missing_ends() -> None:
    router = ready_router(None, R0, R1)
    router.handle(arrived("a", max_tokens=2), 0.0)
    router.handle(Outputs(R0, (token("a", 5, 6),)), 1.0)
    _, end = router.handle(ReplicaLost(R0, "reset"), 2.0)
    assert end == Deliver((Output(A, (), FinishReason.LENGTH, 0),))
    assert router.num_alive == 0


def test_a_stream_past_its_deadline_goes_nowhere() -> None:
    router = ready_router(RouterLimits(deadline_grace=5.0), R0, R1)
    router.handle(arrived("a", deadline=3.0), 0.0)
    effects = router.handle(ReplicaLost(R0, "reset"), 4.0)
    assert effects[-1] == Fail(A, "deadline_exceeded", "the request's time is over")


def test_a_client_that_leaves_cancels_the_attempt_of_now() -> None:
    router = ready_router(None, R0, R1)
    router.handle(arrived("a"), 0.0)
    router.handle(ReplicaLost(R0, "reset"), 1.0)
    assert router.handle(ClientGone((A,)), 2.0) == [CancelAt(R1, RequestId("a~2"))]


def test_an_answer_without_tokens_of_ours_has_begun_all_the_same() -> None:
    """A foreign replica's: its tokens are counted by nobody here."""
    router = ready_router(None, R0, R1)
    router.handle(arrived("a"), 0.0)
    router.handle(Outputs(R0, (Output(A, (), None, 0),)), 1.0)
    _, go_on, *rest = router.handle(ReplicaLost(R0, "reset"), 2.0)
    assert go_on == GoOn(A, R0, "reset", 0, has_begun=True)
    assert places(rest) == [("r1", "a~2")]


def test_what_was_not_answered_has_not_begun() -> None:
    router = ready_router(None, R0, R1)
    router.handle(arrived("a"), 0.0)
    _, go_on, *rest = router.handle(ReplicaLost(R0, "reset"), 2.0)
    assert go_on == GoOn(A, R0, "reset", 0)
    assert places(rest) == [("r1", "a~2")]


def test_what_metrics_show_beside_our_requests_is_kept_in_the_view() -> None:
    router = ready_router(None, R0, R1)
    router.handle(LoadSeen(R1, 7), 1.0)
    router.handle(LoadSeen(ReplicaId("unknown"), 7), 1.0)
    assert [view.past_us for view in router.replicas] == [0, 7]


def test_streams_leave_a_silent_replica_and_it_is_told() -> None:
    router = ready_router(RouterLimits(silent_after=3.0), R0, R1)
    router.handle(arrived("a"), 0.0)
    router.handle(ReplicaBeat(R0), 0.5)
    router.handle(Outputs(R0, (token("a", 5),)), 1.0)
    assert router.handle(Tick(), 3.9) == []
    assert router.next_wakeup() == 4.0
    judged, go_on, cancel, dispatch = router.handle(Tick(), 4.0)
    assert judged == ReplicaJudged(R0, ReplicaState.SUSPECT, "no sign of life for 3.0 s")
    assert go_on == GoOn(A, R0, "no sign of life for 3.0 s", 1)
    assert cancel == CancelAt(R0, A)
    assert isinstance(dispatch, Dispatch)
    assert dispatch.replica == R1


def test_a_silent_replica_gets_nothing_until_it_has_beaten_twice() -> None:
    router = ready_router(RouterLimits(silent_after=3.0), R0)
    router.handle(ReplicaBeat(R0), 0.0)
    router.handle(Tick(), 3.0)
    assert router.state(R0) is ReplicaState.SUSPECT
    assert places(router.handle(arrived("a"), 4.0)) == []
    assert router.handle(ReplicaBeat(R0), 5.0) == []
    effects = router.handle(ReplicaBeat(R0), 5.5)
    assert effects[0] == ReplicaJudged(R0, ReplicaState.READY, "it beats again")
    assert places(effects) == [("r0", "a")]


def test_streams_leave_a_replica_that_beats_and_does_no_step() -> None:
    router = ready_router(RouterLimits(stuck_after=10.0), R0, R1)
    router.handle(arrived("a"), 0.0)
    for half_seconds in range(20):
        assert router.handle(ReplicaBeat(R0), half_seconds / 2) == []
    effects = router.handle(Tick(), 10.0)
    assert effects[0] == ReplicaJudged(
        R0, ReplicaState.SUSPECT, "it has work and did no step for 10.0 s"
    )
    assert places(effects) == [("r1", "a~2")]
    router.handle(ReplicaBeat(R0), 10.5)
    assert router.state(R0) is ReplicaState.SUSPECT
    router.handle(LoadReported(R0, report(step=1)), 11.0)
    assert router.state(R0) is ReplicaState.READY


def test_a_replica_that_never_beat_is_not_judged_by_beats() -> None:
    router = ready_router(None, R0)
    router.handle(arrived("a"), 0.0)
    router.handle(Outputs(R0, (token("a"),)), 1.0)
    assert router.next_wakeup() == 60.0  # the answer has come meanwhile
    assert router.handle(Tick(), 60.0) == []
    assert router.next_wakeup() is None


def test_requests_that_wait_for_a_mute_foreign_replica_go_elsewhere() -> None:
    router = ready_router(RouterLimits(stream_silence=60.0), R0, R1)
    router.handle(arrived("a"), 0.0)
    effects = router.handle(Tick(), 60.0)
    assert effects[0] == ReplicaJudged(
        R0, ReplicaState.EJECTED, "out for 10 s: requests wait and nothing came for 60.0 s"
    )
    assert CancelAt(R0, A) in effects
    assert places(effects) == [("r1", "a~2")]


def test_a_draining_replica_finishes_what_it_has_and_gets_nothing_new() -> None:
    router = ready_router(None, R0, R1)
    router.handle(arrived("a"), 0.0)
    (judged,) = router.handle(DrainReplica(R0, 30.0), 1.0)
    assert isinstance(judged, ReplicaJudged)
    assert judged.state is ReplicaState.DRAINING
    for name in "bcd":
        ((replica, _),) = places(router.handle(arrived(name), 2.0))
        assert replica == "r1"
    *_, emptied = router.handle(Outputs(R0, (token("a", finish=FinishReason.STOP),)), 3.0)
    assert emptied == ReplicaEmptied(R0)
    assert router.handle(Tick(), 40.0) == []


def test_what_a_drain_leaves_at_its_limit_goes_on_elsewhere() -> None:
    router = ready_router(None, R0, R1)
    router.handle(arrived("a"), 0.0)
    router.handle(Outputs(R0, (token("a", 5),)), 1.0)
    router.handle(DrainReplica(R0, 30.0), 1.0)
    assert router.next_wakeup() == 31.0
    go_on, cancel, dispatch, emptied = router.handle(Tick(), 31.0)
    assert go_on == GoOn(A, R0, "its drain is over", 1)
    assert cancel == CancelAt(R0, A)
    assert isinstance(dispatch, Dispatch)
    assert (dispatch.replica, emptied) == (R1, ReplicaEmptied(R0))


def test_drains_do_not_count_as_losses() -> None:
    router = ready_router(RouterLimits(max_migrations=1), R0, R1)
    router.handle(arrived("a"), 0.0)
    places_seen = []
    for number in range(6):
        here, there = (R0, R1) if number % 2 == 0 else (R1, R0)
        router.handle(ResumeReplica(there), number)
        places_seen += places(router.handle(DrainReplica(here, 0.0), number))
    assert [replica for replica, _ in places_seen] == ["r1", "r0", "r1", "r0", "r1", "r0"]


def test_an_idle_or_unknown_replica_is_empty_at_once() -> None:
    router = ready_router(None, R0)
    assert router.handle(DrainReplica(R0, 30.0), 0.0)[-1] == ReplicaEmptied(R0)
    assert router.handle(DrainReplica(R0, 30.0), 1.0) == []
    assert router.handle(DrainReplica(R2, 30.0), 1.0) == [ReplicaEmptied(R2)]


def test_a_drain_can_be_called_off() -> None:
    router = ready_router(None, R0)
    router.handle(DrainReplica(R0, 30.0), 0.0)
    router.handle(arrived("a"), 1.0)
    effects = router.handle(ResumeReplica(R0), 2.0)
    assert effects[0] == ReplicaJudged(R0, ReplicaState.READY, "its drain is off")
    assert places(effects) == [("r0", "a")]
    assert router.handle(ResumeReplica(R0), 3.0) == []


def test_a_draining_replica_that_dies_is_empty_and_its_streams_go_on() -> None:
    router = ready_router(None, R0, R1)
    router.handle(arrived("a"), 0.0)
    router.handle(DrainReplica(R0, 30.0), 0.0)
    effects = router.handle(ReplicaLost(R0, "killed"), 1.0)
    assert ReplicaEmptied(R0) in effects
    assert places(effects) == [("r1", "a~2")]


def test_each_choice_of_a_group_goes_on_for_itself() -> None:
    router = ready_router(None, R0, R1)
    router.handle(RequestArrived((request("a#0"), request("a#1"))), 0.0)
    router.handle(Outputs(R0, (token("a#0", 5), token("a#1", 6, 7))), 1.0)
    effects = router.handle(ReplicaLost(R0, "reset"), 2.0)
    prompts = {e.request.id: e.request.prompt for e in effects if isinstance(e, Dispatch)}
    assert prompts == {"a#0~2": (1, 2, 5), "a#1~2": (1, 2, 6, 7)}
