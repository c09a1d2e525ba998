"""AsyncioDriver, on the virtual-time loop and on a real one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from headrace.clock import MonotonicClock
from headrace.errors import InvariantBroken
from headrace.machine import Source, Tick
from headrace.server.driver import AsyncioDriver
from headrace.testing.virtual_loop import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.clock import Clock


@dataclass
class Recorder:
    """A machine that answers with what it was told; ``sleep 2`` wants a Tick in 2 seconds."""

    wakeup: float | None = None
    seen: list[tuple[float, str]] = field(default_factory=list)

    def handle(self, event: str | Tick, now: float) -> list[str]:
        if isinstance(event, Tick):
            if self.wakeup is None or now < self.wakeup:
                return []
            self.wakeup = None
            event = "tick"
        if event == "fail":
            raise InvariantBroken("told to fail")
        if event.startswith("sleep"):
            self.wakeup = now + float(event.split()[1])
        self.seen.append((now, event))
        return [event]

    def next_wakeup(self) -> float | None:
        return self.wakeup


@pytest.fixture
def loop() -> Iterator[VirtualTimeLoop]:
    loop = VirtualTimeLoop()
    yield loop
    loop.close()


def driver_of(
    loop: asyncio.AbstractEventLoop,
    machine: Recorder,
    clock: Clock,
    perform: Callable[[str], None] = lambda effect: None,
    on_fault: Callable[[Exception], None] = pytest.fail,
) -> AsyncioDriver[str, str]:
    return AsyncioDriver(machine, perform=perform, clock=clock, loop=loop, on_fault=on_fault)


def run_for(loop: VirtualTimeLoop, seconds: float) -> None:
    loop.run_until_complete(asyncio.sleep(seconds))


def test_events_at_one_time_come_by_source_and_then_by_arrival(loop: VirtualTimeLoop):
    machine = Recorder()
    driver = driver_of(loop, machine, loop)
    loop.call_at(1.0, driver.feed, "peer 1")
    loop.call_at(1.0, driver.feed, "device", Source.DEVICE)
    loop.call_at(1.0, driver.feed, "peer 2")
    run_for(loop, 2)
    assert machine.seen == [(1.0, "device"), (1.0, "peer 1"), (1.0, "peer 2")]


def test_effects_are_performed_in_order_and_may_feed_events(loop: VirtualTimeLoop):
    machine, performed = Recorder(), []

    def perform(effect: str) -> None:
        performed.append(effect)
        if effect == "first":
            driver.feed("second")

    driver = driver_of(loop, machine, loop, perform)
    driver.feed("first")
    assert performed == []  # never within feed
    run_for(loop, 1)
    assert performed == ["first", "second"]


def test_a_tick_comes_when_it_is_wanted_and_only_then(loop: VirtualTimeLoop):
    machine = Recorder()
    driver = driver_of(loop, machine, loop)
    driver.feed("sleep 2")
    loop.call_at(1.0, driver.feed, "sleep 0.5")
    run_for(loop, 5)
    assert machine.seen == [(0.0, "sleep 2"), (1.0, "sleep 0.5"), (1.5, "tick")]


def test_a_machine_that_failed_is_dead(loop: VirtualTimeLoop):
    machine, faults = Recorder(), []
    driver = driver_of(loop, machine, loop, on_fault=faults.append)
    driver.feed("sleep 2")
    driver.feed("fail")
    driver.feed("never handled")
    run_for(loop, 5)
    driver.feed("nor this")
    run_for(loop, 5)
    assert [str(fault) for fault in faults] == ["told to fail"]
    assert machine.seen == [(0.0, "sleep 2")]
    assert driver.is_closed


def test_a_machine_that_wants_to_be_woken_in_the_past_breaks_m3(loop: VirtualTimeLoop):
    faults: list[Exception] = []
    driver = driver_of(loop, Recorder(), loop, on_fault=faults.append)
    driver.feed("sleep 0")
    run_for(loop, 1)
    assert "M3" in str(faults[0])


def test_an_effect_that_cannot_be_performed_is_a_fault(loop: VirtualTimeLoop):
    def perform(effect: str) -> None:
        raise OSError(f"cannot {effect}")

    faults: list[Exception] = []
    driver = driver_of(loop, Recorder(), loop, perform, faults.append)
    driver.feed("fly")
    run_for(loop, 1)
    assert str(faults[0]) == "cannot fly"


def test_now_never_decreases(loop: VirtualTimeLoop):
    class Falling:
        times = iter((5.0, 3.0, 6.0))

        def now(self) -> float:
            return next(self.times)

    machine = Recorder()
    driver = driver_of(loop, machine, Falling())
    for name in ("a", "b", "c"):
        driver.feed(name)
    run_for(loop, 1)
    assert machine.seen == [(5.0, "a"), (5.0, "b"), (6.0, "c")]


def test_nothing_happens_after_close(loop: VirtualTimeLoop):
    machine = Recorder()
    driver = driver_of(loop, machine, loop)
    driver.feed("sleep 1")
    run_for(loop, 0.5)
    driver.feed("lost")
    driver.close()
    driver.close()
    run_for(loop, 5)
    assert machine.seen == [(0.0, "sleep 1")]


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_timers_ring_on_a_real_loop_too(library: str):
    factory = pytest.importorskip(library, reason="pip install '.[fast]'").new_event_loop
    machine = Recorder()

    async def main() -> None:
        rung = asyncio.Event()

        def perform(effect: str) -> None:
            if effect == "tick":
                rung.set()

        loop = asyncio.get_running_loop()
        driver = driver_of(loop, machine, MonotonicClock(), perform)
        driver.feed("sleep 0.0123")
        async with asyncio.timeout(5):
            await rung.wait()
        driver.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    (begin, _), (end, _) = machine.seen
    assert end - begin >= 0.0123
