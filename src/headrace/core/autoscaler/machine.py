"""Autoscaler: how many replicas, which one goes, when a drain is over.

    starting --ReplicaUp--> ready --BeginDrain--> draining --ReplicaEmpty--> stopping --> gone
                              ^------EndDrain--------'

It grows when the need (need.py) stays above the replicas that are there or starting, and shrinks by
one when the need would stay well below what one fewer can carry. Between two such decisions lies a
cooldown; after a step out there is no second one until the newcomers had the time to start and to
take over work, unless the need has grown beyond what was asked. Operators change the range and
drain replicas at once: floor and ceiling hold then, except where a replica has died.
"""

from __future__ import annotations

from math import ceil, inf
from typing import TYPE_CHECKING, assert_never

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
    ReplicaUp,
    Scaled,
    Stage,
    StartReplica,
    StopReplica,
)
from headrace.core.autoscaler.fleet import Fleet, Replica, victim
from headrace.core.autoscaler.trend import Trend
from headrace.errors import InvariantBroken
from headrace.machine import Tick

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.core.autoscaler.config import AutoscalerConfig
    from headrace.core.autoscaler.events import ReplicaLoad
    from headrace.types import ReplicaId, Seconds


class Autoscaler:
    """Owns the replica set. Without a range (RangeAsked) it does nothing at all."""

    def __init__(self, config: AutoscalerConfig) -> None:
        self.floor = 0
        self.ceiling = 0
        self._config = config
        self._fleet = Fleet()
        self._trend = Trend(config)
        self._loads: Mapping[ReplicaId, ReplicaLoad] = {}
        self._no_start_before: Seconds = -inf
        self._now: Seconds = -inf
        self._effects: list[AutoscalerEffect] = []
        self._cause = ""  # why the number of replicas is to change

    @property
    def present(self) -> int:
        """Replicas that serve or are starting, and are to stay."""
        return self._fleet.present

    def stages(self) -> Mapping[ReplicaId, tuple[Stage, Seconds]]:
        """Every replica's stage, and since when."""
        return {replica.name: (replica.stage, replica.since) for replica in self._fleet}

    def staying(self) -> frozenset[ReplicaId]:
        """Return the replicas that serve or are starting, and are to stay."""
        return frozenset(replica.name for replica in self._fleet if replica.counts)

    def handle(self, event: AutoscalerEvent, now: Seconds) -> list[AutoscalerEffect]:
        """See Machine."""
        before = self.present
        self._now, self._effects, self._cause = now, [], ""
        self._take(event)
        self._end_overdue_drains()
        self._keep_floor()
        self._keep_ceiling()
        self._drain_retiring()
        if self._cause and (self._effects or self.present != before):
            self._effects.insert(0, Scaled(self.present, before, self._cause))
        return self._effects

    def _take(self, event: AutoscalerEvent) -> None:
        match event:
            case PoolLoad():
                self._take_load(event)
            case ReplicaUp(name, seconds):
                self._take_up(name, seconds)
            case ReplicaDown(name, restarts):
                self._take_down(name, restarts=restarts)
            case ReplicaEmpty(name):
                self._take_empty(name)
            case RangeAsked(floor, ceiling):
                self._take_range(floor, ceiling)
            case DrainAsked(name):
                self._take_drain(name)
            case DrainCancelled(name):
                self._take_cancel(name)
            case Tick():
                pass
            case _:
                assert_never(event)

    def next_wakeup(self) -> Seconds | None:
        """See Machine."""
        times = [self._overdue_at(each) for each in self._fleet if each.stage is Stage.DRAINING]
        if self.present < self.floor:
            times.append(self._no_start_before)
        return min(times, default=None)

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless the range is kept and no drain is forgotten."""
        present = self.present
        may_wait = self._now < self._no_start_before
        if present > self.ceiling or (present < self.floor and not may_wait):
            raise InvariantBroken(f"{present} replicas, not {self.floor} to {self.ceiling}")
        for replica in self._fleet:
            if replica.stage is Stage.DRAINING and self._overdue_at(replica) <= self._now:
                raise InvariantBroken(f"{replica.name} drains since {replica.since}")

    # What became of replicas

    def _take_up(self, name: ReplicaId, seconds: Seconds) -> None:
        replica = self._fleet.find(name)
        if replica is not None and replica.stage is Stage.STARTING:
            self._enter(replica, Stage.READY)
            self._trend.started(seconds, self._now)

    def _take_down(self, name: ReplicaId, *, restarts: bool) -> None:
        """A dead replica that comes again is starting; one that was to go is gone."""
        replica = self._fleet.find(name)
        if replica is None:
            return
        if not restarts:
            if replica.counts:
                self._no_start_before = self._now + self._config.replace_pause
            self._fleet.remove(replica)
        elif replica.stage is Stage.DRAINING or replica.retiring:
            self._stop(replica, "died while it was to drain")
        elif replica.stage is Stage.READY:
            self._enter(replica, Stage.STARTING)

    def _take_empty(self, name: ReplicaId) -> None:
        replica = self._fleet.find(name)
        if replica is not None and replica.stage is Stage.DRAINING:
            self._stop(replica, f"empty after {self._now - replica.since:.1f} s of draining")

    def _end_overdue_drains(self) -> None:
        for replica in self._fleet:
            if replica.stage is Stage.DRAINING and self._overdue_at(replica) <= self._now:
                self._stop(replica, f"not empty within {self._config.drain_limit:g} s")

    def _overdue_at(self, replica: Replica) -> Seconds:
        return replica.since + self._config.drain_limit

    # What operators want

    def _take_range(self, floor: int, ceiling: int) -> None:
        self.floor, self.ceiling = floor, ceiling
        wanted = f"{floor}" if floor == ceiling else f"{floor} to {ceiling}"
        self._cause = f"an operator wants {wanted}"

    def _take_drain(self, name: ReplicaId) -> None:
        replica = self._fleet.find(name)
        if replica is None or replica.stage is Stage.STOPPING:
            return
        self._cause = f"an operator drains {name}"
        if replica.stage is Stage.STARTING:
            self._stop(replica, self._cause)
        replica.retiring = True

    def _take_cancel(self, name: ReplicaId) -> None:
        replica = self._fleet.find(name)
        if replica is None or replica.stage is Stage.STOPPING:
            return
        self._cause = f"an operator wants {name} back"
        replica.retiring = False
        if replica.stage is Stage.DRAINING:
            self._end_drain(replica, self._cause)

    # The range

    def _keep_floor(self) -> None:
        missing = self.floor - self.present
        if missing > 0 and self._now >= self._no_start_before:
            self._cause = self._cause or f"the floor is {self.floor}"
            self._grow(missing, self._cause)

    def _keep_ceiling(self) -> None:
        while self.present > self.ceiling:
            self._cause = self._cause or f"the ceiling is {self.ceiling}"
            self._shrink(self._cause)

    def _drain_retiring(self) -> None:
        """Begin drains that were asked, as soon as the floor is kept without them."""
        for replica in self._fleet:
            ready = len(self._fleet.staying(Stage.READY))
            if replica.retiring and replica.stage is Stage.READY and ready >= self.floor:
                self._begin_drain(replica, "an operator drains it")

    # Load

    def _take_load(self, load: PoolLoad) -> None:
        self._loads = {each.replica: each for each in load.replicas}
        if self.ceiling == 0:
            return
        present = self.present
        self._trend.update(load, self._now, present=present)
        wanted = min(ceil(self._trend.wanted), self.ceiling)
        if wanted > present and self._trend.may_grow(wanted, self._now, present=present):
            self._cause = self._trend.growth_reason()
            self._trend.grew(wanted, self._now)
            self._grow(wanted - present, self._cause)
        elif self._may_shrink(present) and self._trend.may_shrink(self._now):
            self._cause = self._trend.shrink_reason(present)
            self._trend.shrank(self._now)
            self._shrink(self._cause)

    def _may_shrink(self, present: int) -> bool:
        """One at a time, and not below the floor."""
        leaving = (Stage.DRAINING, Stage.STOPPING)
        return present > self.floor and not any(each.stage in leaving for each in self._fleet)

    # Steps

    def _grow(self, number: int, reason: str) -> None:
        """Take back what drains by load, the newest drain first; start the rest."""
        draining = sorted(self._fleet.staying(Stage.DRAINING), key=lambda each: -each.since)
        for replica in draining[:number]:
            self._end_drain(replica, reason)
        for _ in range(number - len(draining)):
            self._effects.append(StartReplica(self._fleet.add(self._now).name, reason))

    def _shrink(self, reason: str) -> None:
        leaver = victim([each for each in self._fleet if each.counts], self._loads)
        if leaver.stage is Stage.STARTING:
            self._stop(leaver, reason)
        else:
            self._begin_drain(leaver, reason)

    def _begin_drain(self, replica: Replica, reason: str) -> None:
        self._enter(replica, Stage.DRAINING)
        self._effects.append(BeginDrain(replica.name, reason))

    def _end_drain(self, replica: Replica, reason: str) -> None:
        self._enter(replica, Stage.READY)
        self._effects.append(EndDrain(replica.name, reason))

    def _stop(self, replica: Replica, reason: str) -> None:
        self._enter(replica, Stage.STOPPING)
        self._effects.append(StopReplica(replica.name, reason))

    def _enter(self, replica: Replica, stage: Stage) -> None:
        replica.stage = stage
        replica.since = self._now
