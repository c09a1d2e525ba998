"""The Autoscaler: orders, deaths and drains by hand, load in a pool in virtual time."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.autoscaler.events import (
    AutoscalerEffect,
    AutoscalerEvent,
    BeginDrain,
    DrainAsked,
    DrainCancelled,
    EndDrain,
    PoolLoad,
    RangeAsked,
    ReplicaDown,
    ReplicaEmpty,
    ReplicaLoad,
    ReplicaUp,
    Scaled,
    Stage,
    StartReplica,
    StopReplica,
)
from headrace.core.autoscaler.machine import Autoscaler
from headrace.machine import Tick
from headrace.testing.scaled_pool import ScaledPool
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable

R = tuple(ReplicaId(f"r{i}") for i in range(9))
CONFIG = AutoscalerConfig(
    short_window=1.0,
    long_window=10.0,
    scale_in_after=20.0,
    drain_limit=30.0,
    start_guess=4.0,
)


class Hand:
    """Feeds a machine by hand; shows what it does to replicas, without reasons."""

    def __init__(self, floor: int, ceiling: int, config: AutoscalerConfig = CONFIG) -> None:
        self.machine = Autoscaler(config)
        self.now = 0.0
        self.scaled: list[Scaled] = []
        self.feed(RangeAsked(floor, ceiling))
        for name in R[:floor]:
            self.feed(ReplicaUp(name, 4.0))

    def feed(self, event: AutoscalerEvent, after: float = 0.0) -> list[tuple[type, str]]:
        self.now += after
        effects = self.machine.handle(event, self.now)
        self.machine.check_integrity()
        self.scaled += [effect for effect in effects if isinstance(effect, Scaled)]
        return [short(effect) for effect in effects if not isinstance(effect, Scaled)]

    @property
    def stages(self) -> dict[str, Stage]:
        return {name: stage for name, (stage, _) in self.machine.stages().items()}

    def load(self, **outstanding: int) -> PoolLoad:
        return PoolLoad(
            waiting=0,
            waiting_tokens=0,
            predicted_ttft=None,
            replicas=tuple(
                ReplicaLoad(
                    replica=ReplicaId(name),
                    outstanding=number,
                    prefill_tokens=0,
                    kv_used=0.0,
                    prefill_rate=0.0,
                )
                for name, number in outstanding.items()
            ),
        )


def short(effect: AutoscalerEffect) -> tuple[type, str]:
    assert not isinstance(effect, Scaled)
    assert effect.reason
    return type(effect), effect.replica


def test_without_a_range_nothing_is_done():
    machine = Autoscaler(CONFIG)
    assert machine.handle(Hand(1, 1).load(x=9), 1.0) == []
    assert machine.handle(DrainAsked(R[0]), 2.0) == []
    assert machine.next_wakeup() is None


def test_the_floor_is_started_at_once():
    hand = Hand(0, 0)
    assert hand.feed(RangeAsked(2, 3)) == [(StartReplica, "r0"), (StartReplica, "r1")]
    assert hand.scaled == [Scaled(2, 0, "an operator wants 2 to 3")]


def test_a_new_range_that_holds_already_changes_nothing():
    hand = Hand(2, 3)
    assert hand.feed(RangeAsked(1, 2)) == []
    assert len(hand.scaled) == 1


def test_a_lower_ceiling_drains_the_least_loaded_and_starting_ones_first():
    hand = Hand(3, 5)
    hand.feed(RangeAsked(4, 5))
    hand.feed(hand.load(r0=1, r1=5, r2=1))
    assert hand.feed(RangeAsked(1, 2)) == [(StopReplica, "r3"), (BeginDrain, "r2")]
    assert hand.scaled[-1] == Scaled(2, 4, "an operator wants 1 to 2")


def test_a_dead_replica_that_comes_again_keeps_its_place():
    hand = Hand(2, 2)
    assert hand.feed(ReplicaDown(R[1], restarts=True)) == []
    assert hand.stages == {"r0": Stage.READY, "r1": Stage.STARTING}
    hand.feed(ReplicaUp(R[1], 3.0))
    assert hand.stages["r1"] is Stage.READY


def test_a_replica_that_is_gone_for_good_is_replaced_after_a_pause_under_a_new_name():
    hand = Hand(2, 2)
    assert hand.feed(ReplicaDown(R[0], restarts=False)) == []
    assert hand.machine.next_wakeup() == pytest.approx(CONFIG.replace_pause)
    assert hand.feed(Tick(), after=CONFIG.replace_pause) == [(StartReplica, "r2")]
    assert hand.scaled[-1] == Scaled(2, 1, "the floor is 2")


def test_a_drain_that_would_break_the_floor_starts_a_successor_first():
    hand = Hand(2, 2)
    assert hand.feed(DrainAsked(R[0])) == [(StartReplica, "r2")]
    assert hand.feed(ReplicaUp(R[2], 4.0)) == [(BeginDrain, "r0")]
    assert hand.feed(ReplicaEmpty(R[0])) == [(StopReplica, "r0")]
    assert hand.feed(ReplicaDown(R[0], restarts=False)) == []
    assert hand.stages == {"r1": Stage.READY, "r2": Stage.READY}
    assert [each.reason for each in hand.scaled[1:]] == ["an operator drains r0"]


def test_a_drain_above_the_floor_begins_at_once():
    hand = Hand(2, 2)
    hand.feed(RangeAsked(1, 2))
    assert hand.feed(DrainAsked(R[0])) == [(BeginDrain, "r0")]
    assert hand.scaled[-1] == Scaled(1, 2, "an operator drains r0")


def test_a_starting_replica_that_is_to_drain_is_stopped():
    hand = Hand(1, 2)
    hand.feed(RangeAsked(2, 2))
    assert hand.feed(DrainAsked(R[1])) == [(StopReplica, "r1"), (StartReplica, "r2")]


def test_a_cancelled_drain_gives_the_replica_back_and_stops_its_successor():
    hand = Hand(2, 2)
    hand.feed(DrainAsked(R[0]))
    assert hand.feed(DrainCancelled(R[0])) == [(StopReplica, "r2")]
    hand.feed(DrainAsked(R[0]))
    hand.feed(ReplicaUp(R[3], 4.0))
    hand.feed(hand.load(r0=3, r1=3, r3=0))
    assert hand.feed(DrainCancelled(R[0])) == [(EndDrain, "r0"), (BeginDrain, "r3")]


def test_orders_for_unknown_and_stopping_replicas_are_harmless():
    hand = Hand(2, 3)
    hand.feed(RangeAsked(1, 3))
    hand.feed(DrainAsked(R[0]))
    hand.feed(ReplicaEmpty(R[0]))
    for name in (R[0], R[8]):
        for event in (DrainAsked(name), DrainCancelled(name), ReplicaEmpty(name)):
            assert hand.feed(event) == []
    assert hand.feed(DrainCancelled(R[1])) == []
    assert hand.stages == {"r0": Stage.STOPPING, "r1": Stage.READY}


def test_a_drain_that_nobody_ends_is_ended():
    hand = Hand(2, 2)
    hand.feed(RangeAsked(1, 2))
    hand.feed(DrainAsked(R[1]))
    assert hand.machine.next_wakeup() == CONFIG.drain_limit
    assert hand.feed(Tick(), after=CONFIG.drain_limit) == [(StopReplica, "r1")]


def test_a_replica_that_dies_while_it_drains_is_not_started_again():
    hand = Hand(2, 2)
    hand.feed(RangeAsked(1, 2))
    hand.feed(DrainAsked(R[1]))
    assert hand.feed(ReplicaDown(R[1], restarts=True)) == [(StopReplica, "r1")]


# Load, in a closed loop

IN_PATIENCE = CONFIG.scale_in_after


def pool(
    work: Callable[[float], float], floor: int = 1, ceiling: int = 4, start_seconds: float = 4.0
) -> ScaledPool:
    pool = ScaledPool(CONFIG, work=work, start_seconds=start_seconds)
    pool.set_range(floor, ceiling)
    return pool


def test_the_pool_grows_with_work_and_shrinks_without_it():
    loop = pool(lambda now: 2400.0 if 20 <= now < 120 else 100.0)
    loop.run(20)
    assert len(loop.ready) == 1
    loop.run(120)
    assert len(loop.ready) >= 3
    assert loop.queue < 2000
    loop.run(400)
    assert len(loop.ready) == 1
    steps = [(after.present, after.desired) for _, after in loop.decisions]
    assert all(low - high <= 1 for low, high in steps)  # in by one at a time
    assert loop.decisions[1][1].reason.startswith("needs ")
    assert "% of their limits, below 70%" in loop.decisions[-1][1].reason


def test_a_burst_starts_what_it_needs_and_no_second_step_follows_while_they_start():
    loop = pool(lambda now: 8000.0 if 20 <= now < 21 else 0.0, ceiling=8, start_seconds=10.0)
    loop.run(34)
    grown = [(now, step) for now, step in loop.decisions if now > 0]
    assert len(grown) == 1
    now, step = grown[0]
    assert now - 20 <= CONFIG.scale_out_after + 2
    assert step.desired > 3


def test_a_need_that_grows_does_not_wait_for_those_who_start():
    loop = pool(lambda now: (now - 70) * 500 if now > 70 else 0.0, ceiling=8, start_seconds=60.0)
    loop.run(110)
    outs = [now for now, step in loop.decisions if step.desired > step.present and now > 0]
    assert len(outs) >= 2
    assert all(later - earlier >= CONFIG.cooldown for earlier, later in pairwise(outs))


def test_work_that_comes_back_during_a_drain_takes_the_replica_back():
    loop = ScaledPool(CONFIG, work=lambda now: 0.0 if now < 40 else 1900.0, drain_seconds=29.0)
    loop.set_range(2, 2)
    loop.run(10)
    loop.set_range(1, 2)
    drained = next_effect(loop, BeginDrain, until=100)
    returned = next_effect(loop, EndDrain, until=100)
    assert drained == returned
    names = [short(e)[1] for e in loop.journal.effects if isinstance(e, StartReplica)]
    assert names == ["r0", "r1"]


def next_effect(loop: ScaledPool, kind: type, until: float) -> str:
    loop.run(until)
    return next(e.replica for e in loop.journal.effects if isinstance(e, kind))


def test_one_fewer_must_be_enough_before_one_goes():
    loop = pool(lambda now: 1400.0 if now < 30 else 950.0, ceiling=2)
    loop.run(300)
    assert len(loop.ready) == 2  # one alone would be loaded to more than 70 %


@pytest.mark.parametrize("start_seconds", [5.0, 20.0])
@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.3])
def test_a_square_wave_as_long_as_a_start_does_not_make_it_flap(start_seconds: float, ratio: float):
    period = start_seconds * ratio
    wave = pool(
        lambda now: 2500.0 if now % period < period / 2 else 0.0,
        ceiling=4,
        start_seconds=start_seconds,
    )
    wave.run(40 * period)
    late = [step for now, step in wave.decisions if now > 10 * period]
    assert len(late) <= 2
    assert len(wave.ready) >= 2


phases = st.lists(
    st.tuples(st.floats(1, 60), st.sampled_from([0.0, 300.0, 900.0, 2500.0, 9000.0])),
    min_size=3,
    max_size=8,
)


@given(phases, st.sampled_from([1.0, 5.0, 20.0]), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_whatever_the_load_there_is_one_decision_per_cooldown_and_the_range_is_kept(
    phases: list[tuple[float, float]], start_seconds: float, floor: int
):
    config = AutoscalerConfig(
        short_window=0.5, long_window=1.0, scale_out_after=0.5, scale_in_after=1.0, cooldown=9.0
    )
    work = 0.0
    loop = ScaledPool(config, work=lambda now: work, start_seconds=start_seconds)
    loop.set_range(floor, 5)
    for seconds, work in phases:  # noqa: B007 (the pool reads it)
        loop.run(loop.now + seconds)
    by_load = [now for now, step in loop.decisions if "an operator" not in step.reason]
    assert all(later - earlier >= config.cooldown for earlier, later in pairwise(by_load))
    assert all(floor <= step.desired <= 5 for _, step in loop.decisions)


def test_without_reports_nothing_changes():
    hand = Hand(1, 3)
    hand.feed(hand.load(r0=900))
    assert hand.feed(Tick(), after=1000) == []
