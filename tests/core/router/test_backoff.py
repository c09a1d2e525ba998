"""Pauses between attempts at the same replica, by examples.

tests/property has the state machine.
"""

from __future__ import annotations

import pytest
from routing import R0, R1, arrived, failed, places, ready_router, request, token

from headrace.core.router.events import (
    ClientGone,
    Fail,
    Outputs,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.machine import Tick
from headrace.types import FinishReason, RequestId

MANY = RouterLimits(max_retries=16, retry_share=1.0, max_failures=1000)


def pause_after(router: Router, name: str, now: float) -> float:
    """Fail an attempt at R0; return how long its request is held."""
    assert places(router.handle(failed(name), now)) == []
    wakeup = router.next_wakeup()
    assert wakeup is not None
    return wakeup - now


def test_what_failed_at_the_only_replica_waits_before_it_is_tried_again() -> None:
    router = ready_router(MANY, R0)
    router.handle(arrived("a"), 0.0)
    pause = pause_after(router, "a", 1.0)
    assert 0 < pause <= 0.025
    assert router.num_waiting == 1
    assert places(router.handle(Tick(), 1.0 + pause)) == [("r0", "a~2")]
    router.check_integrity()


def test_each_pause_may_be_twice_as_long_up_to_a_second() -> None:
    longest = [0.0] * 10
    for seed in range(40):
        router = ready_router(MANY, R0, seed=seed)
        router.handle(arrived("a", *(f"paying{number}" for number in range(7))), 0.0)
        now, name = 0.0, "a"
        for number in range(10):
            pause = pause_after(router, name, now)
            longest[number] = max(longest[number], pause)
            now += pause
            ((_, name),) = places(router.handle(Tick(), now))
    for number, pause in enumerate(longest):
        limit = min(1.0, 0.025 * 2**number)
        assert 0.8 * limit < pause <= limit


def test_those_who_failed_together_do_not_come_back_together() -> None:
    router = ready_router(MANY, R0)
    names = [f"q{number}" for number in range(8)]
    for name in names:
        router.handle(arrived(name), 0.0)
    for name in names:
        router.handle(failed(name), 1.0)
    times = []
    while router.num_waiting:
        times.append(router.next_wakeup() or 0.0)
        assert len(places(router.handle(Tick(), times[-1]))) == 1
    assert len(set(times)) == 8


def test_the_same_seed_draws_the_same_pauses() -> None:
    def pauses(seed: int) -> list[float]:
        router = ready_router(MANY, R0, seed=seed)
        for number in range(5):
            router.handle(arrived(f"q{number}"), 0.0)
        return [pause_after(router, f"q{number}", 1.0) for number in range(5)]

    assert pauses(3) == pauses(3) != pauses(4)


def test_another_replica_takes_it_at_once() -> None:
    router = ready_router(MANY, R0, R1)
    router.handle(arrived("a"), 0.0)
    assert places(router.handle(failed("a"), 1.0)) == [("r1", "a~2")]


def test_a_replica_that_comes_meanwhile_takes_it_at_once() -> None:
    router = ready_router(MANY, R0)
    router.handle(arrived("a"), 0.0)
    pause_after(router, "a", 1.0)
    assert places(router.handle(ReplicaReady(R1), 1.0)) == [("r1", "a~2")]


def test_a_place_that_is_free_again_elsewhere_takes_it_at_once() -> None:
    router = ready_router(RouterLimits(max_outstanding=1, retry_share=1.0), R0, R1)
    router.handle(arrived("a"), 0.0)
    router.handle(arrived("b"), 0.0)
    pause_after(router, "a", 1.0)
    effects = router.handle(Outputs(R1, (token("b", finish=FinishReason.STOP),)), 1.0)
    assert places(effects) == [("r1", "a~2")]


def test_a_place_that_comes_and_goes_is_seen_each_time() -> None:
    router = ready_router(RouterLimits(max_outstanding=1, retry_share=1.0), R0, R1)
    for now, names in ((0.0, "ab"), (2.0, "cd")):
        here = [place for name in names for place in places(router.handle(arrived(name), now))]
        first, second = (dict(here)[replica] for replica in (R0, R1))
        pause_after(router, first, now + 1)
        effects = router.handle(Outputs(R1, (token(second, finish=FinishReason.STOP),)), now + 1)
        assert places(effects) == [("r1", f"{first}~2")]
        done = token(f"{first}~2", finish=FinishReason.STOP)
        router.handle(Outputs(R1, (done,)), now + 1)


def test_who_comes_back_from_a_pause_is_before_those_who_lost_their_places_later() -> None:
    router = ready_router(RouterLimits(max_wait=10.0), R0)
    router.handle(arrived("a"), 0.0)
    router.handle(arrived("b"), 0.0)
    router.handle(failed("a", busy_for=3.0), 1.0)
    router.handle(ReplicaLost(R0, "killed"), 2.0)
    router.handle(Tick(), 5.0)
    assert router.next_wakeup() == 11.0
    assert [attempt for _, attempt in places(router.handle(ReplicaReady(R0), 6.0))] == [
        "a~2",
        "b~2",
    ]


def test_new_requests_do_not_wait_for_one_that_rests() -> None:
    router = ready_router(MANY, R0)
    router.handle(arrived("a"), 0.0)
    pause_after(router, "a", 1.0)
    assert places(router.handle(arrived("b"), 1.0)) == [("r0", "b")]


def test_the_time_that_a_replica_asks_for_comes_before_the_pause() -> None:
    router = ready_router(MANY, R0)
    router.handle(arrived("a"), 0.0)
    router.handle(failed("a", busy_for=4.0), 1.0)
    assert places(router.handle(Tick(), 5.0)) == []
    wakeup = router.next_wakeup()
    assert wakeup is not None
    assert 5.0 < wakeup <= 5.025
    assert places(router.handle(Tick(), wakeup)) == [("r0", "a~2")]


@pytest.mark.parametrize("deadline", [1.01, 1.001])
def test_half_of_what_is_left_of_a_deadline_is_left_for_the_retry(deadline: float) -> None:
    for seed in range(10):
        router = ready_router(MANY, R0, seed=seed)
        router.handle(arrived("a", deadline=deadline), 0.0)
        assert pause_after(router, "a", 1.0) <= (deadline - 1.0) / 2 + 1e-9


def test_a_deadline_may_pass_during_a_pause_that_was_long() -> None:
    router = ready_router(MANY, R0)
    router.handle(arrived("a", deadline=3.0), 0.0)
    pause_after(router, "a", 1.0)
    (fail,) = router.handle(Tick(), 3.0)
    assert isinstance(fail, Fail)
    assert fail.code == "deadline_exceeded"
    router.check_integrity()


def test_whoever_rests_too_long_counts_the_rest_as_waiting() -> None:
    router = ready_router(RouterLimits(max_wait=10.0), R0)
    router.handle(arrived("a"), 0.0)
    router.handle(failed("a", busy_for=60.0), 1.0)
    assert router.next_wakeup() == 6.0  # half of what it may wait
    router.handle(Tick(), 6.0)
    (fail,) = router.handle(Tick(), 11.0)
    assert isinstance(fail, Fail)
    assert fail.code == "overloaded"


def test_a_client_that_leaves_during_a_pause_leaves_no_trace() -> None:
    router = ready_router(MANY, R0)
    router.handle(RequestArrived((request("a"),)), 0.0)
    pause_after(router, "a", 1.0)
    assert router.handle(ClientGone((RequestId("a"),)), 1.0) == []
    assert (router.num_alive, router.num_waiting) == (0, 0)
    wakeup = router.next_wakeup()
    assert wakeup is None or wakeup > 2.0  # of the replica's silence
    router.check_integrity()
