"""SimulatedPool: the controller of a cluster in virtual time, and the places where replicas run.

The Autoscaler owns the replica set, as in production; with as many replicas wanted as there are
(no range) it only keeps them. A replica that is killed is started again after a pause.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.autoscaler.events import (
    AutoscalerEffect,
    AutoscalerEvent,
    BeginDrain,
    EndDrain,
    PoolLoad,
    RangeAsked,
    ReplicaDown,
    ReplicaEmpty,
    ReplicaUp,
    Scaled,
    StartReplica,
    StopReplica,
)
from headrace.core.router.events import ReplicaReady
from headrace.machine import Source
from headrace.twin.simulator import SimulatedDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.autoscaler.machine import Autoscaler
    from headrace.core.balancer.policy import ReplicaFacts
    from headrace.twin.config import Pool
    from headrace.twin.front import SimulatedFront
    from headrace.twin.lines import Lines
    from headrace.twin.replica import SimulatedReplica
    from headrace.twin.simulator import Simulator
    from headrace.types import ReplicaId, Seconds


class Life(NamedTuple):
    """A process that serves, and its connections."""

    process: SimulatedReplica
    lines: Lines


@dataclass(slots=True, eq=False)
class Place:
    """Where a replica of one name lives, from its first start to its end for good."""

    since: Seconds  # it is paid for from here
    until: Seconds | None = None
    life: Life | None = None  # None while it starts
    busy_seconds: Seconds = 0.0  # of earlier lives
    num_steps: int = 0


class ScalingStep(NamedTuple):
    """A decision on the number of replicas, or what became of one."""

    at: Seconds
    what: str
    reason: str


class SimulatedPool:
    """Performs the Autoscaler's effects. ``launch`` makes a fresh process."""

    def __init__(
        self,
        autoscaler: Autoscaler,
        config: Pool,
        *,
        simulator: Simulator,
        clock_offset: Seconds,
        launch: Callable[[ReplicaId], Life],
        facts: ReplicaFacts,
    ) -> None:
        self.places: dict[ReplicaId, Place] = {}
        self.timeline: list[ScalingStep] = []
        self._config = config
        self._simulator = simulator
        self._launch = launch
        self._facts = facts
        self._front: SimulatedFront | None = None
        self._is_warm = False
        self.driver: SimulatedDriver[AutoscalerEvent, AutoscalerEffect] = SimulatedDriver(
            simulator, autoscaler, perform=self._perform, clock_offset=clock_offset
        )

    def open(self, front: SimulatedFront) -> None:
        """Have the first replicas ready at once; scale from then on."""
        self._front = front
        config = self._config
        self.driver.deliver(RangeAsked(config.replicas, config.replicas))
        self._simulator.run(until=self._simulator.now)
        self._is_warm = True
        if (config.floor, config.ceiling) != (config.replicas, config.replicas):
            self.driver.deliver(RangeAsked(config.floor, config.ceiling))

    def beat(self) -> None:
        """Let every process say that it lives."""
        for place in self.places.values():
            if place.life is not None:
                place.life.process.beat()

    def kill(self, name: ReplicaId) -> None:
        """End a process without a word; its connection is reset a little later."""
        place = self.places.get(name)
        if place is None or place.life is None:
            self._note(f"kill {name}", "there is no such replica now")
            return
        self._note(f"kill {name}", "as was asked")
        self._end_life(place)
        front, config = self._the_front(), self._config
        self._later(config.detect_seconds, lambda: front.lose(name, "connection reset"))
        self.driver.feed(ReplicaDown(name, restarts=True))
        self._later(
            config.restart_pause + config.start_seconds,
            lambda: self._come_up(name, config.start_seconds),
        )

    def slow(self, name: ReplicaId, factor: float) -> None:
        """Let every step of a process take ``factor`` times as long from now on."""
        place = self.places.get(name)
        if place is None or place.life is None:
            self._note(f"slow {name}", "there is no such replica now")
            return
        self._note(f"slow {name}", f"{factor:g} times, as was asked")
        place.life.process.device.slowness = factor

    def emptied(self, name: ReplicaId) -> None:
        """No gateway has anything left at a draining replica."""
        self.driver.feed(ReplicaEmpty(name))

    def report(self, load: PoolLoad) -> None:
        """Hand on what the gateways see."""
        self.driver.deliver(load)

    def _perform(self, effect: AutoscalerEffect) -> None:
        front = self._the_front()
        match effect:
            case StartReplica(name, reason):
                self._start(name, reason)
            case StopReplica(name, reason):
                self._stop(name, reason)
            case BeginDrain(name, reason):
                self._note(f"drain {name}", reason)
                front.drain(name, self._config.drain_seconds)
            case EndDrain(name, reason):
                self._note(f"keep {name}", reason)
                front.resume(name)
            case Scaled(desired, present, reason):
                if self._is_warm and desired != present:
                    self._note(f"{present} -> {desired}", reason)

    def _start(self, name: ReplicaId, reason: str) -> None:
        seconds = self._config.start_seconds
        self.places[name] = Place(since=self._simulator.now)
        if self._is_warm:
            self._note(f"start {name}", reason)
        self._later(seconds if self._is_warm else 0.0, lambda: self._come_up(name, seconds))

    def _come_up(self, name: ReplicaId, seconds: Seconds) -> None:
        place = self.places[name]
        if place.until is not None or place.life is not None:
            return
        place.life = self._launch(name)
        if self._is_warm:
            self._note(f"ready {name}", f"{seconds:g} s after its start")
        lends = self._facts.peer_block_seconds > 0
        facts = replace(self._facts, lends_at=name) if lends else self._facts
        ready = ReplicaReady(name, facts)
        self._the_front().connect(name, place.life.lines, ready)
        self.driver.feed(ReplicaUp(name, seconds))

    def _stop(self, name: ReplicaId, reason: str) -> None:
        self._note(f"stop {name}", reason)
        place = self.places[name]
        place.until = self._simulator.now
        self._end_life(place)
        front = self._the_front()
        self._later(0.0, lambda: front.lose(name, "it was stopped"))
        self.driver.feed(ReplicaDown(name, restarts=False))

    def _end_life(self, place: Place) -> None:
        if place.life is None:
            return
        place.busy_seconds += place.life.process.device.busy_seconds
        place.num_steps += place.life.process.device.num_steps
        place.life.process.end()
        place.life.lines.cut()
        place.life = None

    def _later(self, seconds: Seconds, callback: Callable[[], None]) -> None:
        self._simulator.call_at(self._simulator.now + seconds, callback, Source.PEER)

    def _note(self, what: str, reason: str) -> None:
        self.timeline.append(ScalingStep(self._simulator.now, what, reason))

    def _the_front(self) -> SimulatedFront:
        assert self._front is not None, "open() comes first"
        return self._front
