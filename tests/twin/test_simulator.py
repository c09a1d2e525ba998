"""Simulator and SimulatedDriver."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from headrace.errors import InvariantBroken
from headrace.machine import Source, Tick
from headrace.twin.simulator import SimulatedDriver, Simulator


@dataclass
class Alarm:
    """A machine that answers with what it was told, and wants a Tick ``period`` after it."""

    period: float | None = None
    wakeup: float | None = None
    seen: list[tuple[float, str]] = field(default_factory=list)

    def handle(self, event: str | Tick, now: float) -> list[str]:
        name = event if isinstance(event, str) else "tick"
        self.seen.append((now, name))
        if self.period is not None and isinstance(event, str):
            self.wakeup = now + self.period
        elif self.wakeup is not None and self.wakeup <= now:
            self.wakeup = None
        return [name]

    def next_wakeup(self) -> float | None:
        return self.wakeup


def driver_of(
    machine: Alarm, simulator: Simulator, clock_offset: float = 0.0
) -> SimulatedDriver[str, str]:
    return SimulatedDriver(
        simulator, machine, perform=lambda effect: None, clock_offset=clock_offset
    )


def test_events_at_one_time_come_by_source_and_then_by_arrival():
    simulator, machine = Simulator(), Alarm()
    driver = driver_of(machine, simulator)
    driver.feed_at(1.0, "timer", Source.TIMER)
    driver.feed_at(1.0, "peer 1")
    driver.feed_at(1.0, "peer 2")
    driver.feed_at(1.0, "device", Source.DEVICE)
    driver.feed_at(0.5, "early")
    simulator.run()
    assert [name for _, name in machine.seen] == ["early", "device", "peer 1", "peer 2", "timer"]
    assert simulator.now == 1.0


def test_a_tick_comes_when_it_is_wanted_and_only_then():
    simulator, machine = Simulator(), Alarm(period=2.0)
    driver = driver_of(machine, simulator)
    driver.feed_at(0.0, "a")
    driver.feed_at(1.0, "b")  # changes the mind: not at 2, but at 3
    simulator.run()
    assert machine.seen == [(0.0, "a"), (1.0, "b"), (3.0, "tick")]


@pytest.mark.parametrize("offset", [0.1, 1e9 / 3, -12345.678])
def test_a_process_has_its_own_clock_and_rounding_does_not_wake_it_for_ever(offset: float):
    simulator, machine = Simulator(), Alarm(period=0.1)
    driver = driver_of(machine, simulator, offset)
    for i in range(50):
        driver.feed_at(i * 0.37, "event")
    simulator.run(max_events=1000)
    assert machine.seen[0][0] == offset
    assert sum(name == "tick" for _, name in machine.seen) == 50


def test_a_machine_that_wants_to_be_woken_in_the_past_breaks_m3():
    simulator = Simulator()
    driver_of(Alarm(period=0.0), simulator).feed("now")
    with pytest.raises(InvariantBroken, match="M3"):
        simulator.run()


def test_nothing_can_be_scheduled_in_the_past():
    simulator = Simulator(start=5.0)
    with pytest.raises(ValueError, match=r"4.0 s lies before now, 5.0 s"):
        simulator.call_at(4.0, lambda: None, Source.PEER)


def test_a_run_that_never_rests_is_an_error():
    simulator = Simulator()

    def again() -> None:
        simulator.call_at(simulator.now, again, Source.PEER)

    again()
    with pytest.raises(InvariantBroken, match="not at rest after 100 events"):
        simulator.run(max_events=100)


def test_a_run_can_be_stopped_and_continued():
    simulator, machine = Simulator(), Alarm()
    driver = driver_of(machine, simulator)
    for when in (1.0, 2.0, 3.0):
        driver.feed_at(when, f"at {when}")
    simulator.run(until=2.0)
    assert len(machine.seen) == 2
    simulator.run()
    assert len(machine.seen) == 3
