"""The controller: an Autoscaler on the event loop, replicas behind a Provisioner, gateways told.

    PoolReport, Emptied --> ControlLink --.                    .--StartReplica--> Provisioner
    replica_up, replica_down ------------ +--> Autoscaler ---- +--BeginDrain----> Members
    headrace scale, drain --> AdminPlane -'                    '--Scaled--------> journal

It passes on and keeps no opinion: what to do is the Autoscaler's, how is the Provisioner's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Protocol, assert_never

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
from headrace.core.autoscaler.gathering import Gathering
from headrace.messages import Member, Members
from headrace.server.driver import AsyncioDriver
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.clock import Clock
    from headrace.core.autoscaler.machine import Autoscaler
    from headrace.messages import Emptied, PoolReport
    from headrace.server.child import Failed
    from headrace.server.decisions import Decisions
    from headrace.server.provisioner import Place, Provisioner, ReplicaEvents
    from headrace.types import Seconds

_REPORT_SECONDS: Seconds = 2.0
"""For a gateway to find a new replica and say so."""

_log = logging.getLogger(__name__)


class ControllerEvents(Protocol):
    """What the controller's owner must know."""

    def pool_trouble(self, text: str) -> None:
        """A replica died."""
        ...

    def pool_hopeless(self, failure: Failed) -> None:
        """A replica cannot be started."""
        ...

    def pool_fault(self, error: Exception) -> None:
        """The Autoscaler is dead (M5)."""
        ...


class Gateways(Protocol):
    """Who is told of the members."""

    def send_members(self, members: Members) -> None:
        """Make this the table."""
        ...


class GatewayReports:
    """Implements ControlEvents: what gateways say, as one event for all of them."""

    def __init__(self, feed: Callable[[AutoscalerEvent], None]) -> None:
        self.gathering = Gathering()
        self._feed = feed

    def gateway_joined(self, name: str) -> None:
        """See ControlEvents."""
        self.gathering.join(name)

    def gateway_left(self, name: str) -> None:
        """See ControlEvents."""
        for replica in self.gathering.leave(name):
            self._feed(ReplicaEmpty(replica))

    def gateway_load(self, report: PoolReport) -> None:
        """See ControlEvents."""
        self._feed(self.gathering.load(report.gateway, pool_load(report)))

    def gateway_emptied(self, emptied: Emptied) -> None:
        """See ControlEvents."""
        replica = ReplicaId(emptied.replica)
        if self.gathering.emptied(emptied.gateway, replica):
            self._feed(ReplicaEmpty(replica))


class Controller:
    """Runs an Autoscaler; ``provision`` builds the Provisioner that reports to it."""

    def __init__(
        self,
        autoscaler: Autoscaler,
        *,
        provision: Callable[[ReplicaEvents], Provisioner],
        gateways: Gateways,
        events: ControllerEvents,
        decisions: Decisions,
        drain_limit: Seconds,
        clock: Clock,
    ) -> None:
        self.autoscaler = autoscaler
        self.decisions = decisions
        self.provisioner = provision(self)
        self._gateways = gateways
        self._events = events
        self._drain_limit = drain_limit
        self._was_up: dict[ReplicaId, str] = {}  # addresses of those that gateways may use
        self._changed = asyncio.Event()
        self._driver: AsyncioDriver[AutoscalerEvent, AutoscalerEffect] = AsyncioDriver(
            autoscaler,
            perform=self._perform,
            clock=clock,
            loop=asyncio.get_running_loop(),
            on_fault=events.pool_fault,
            observe=lambda *_: self._changed.set(),
        )
        self.reports = GatewayReports(self._driver.feed)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is decided any more."""
        return self._driver.is_closed

    def set_range(self, floor: int, ceiling: int) -> None:
        """Keep this number of replicas from now on."""
        self._driver.feed(RangeAsked(floor, ceiling))

    def drain(self, replica: ReplicaId, *, cancel: bool) -> None:
        """End a replica when its streams have ended, or take that back."""
        self._driver.feed(DrainCancelled(replica) if cancel else DrainAsked(replica))

    async def floor_is_ready(self, floor: int) -> Sequence[Place]:
        """Wait until so many replicas are ready and gateways say so; return where they are.

        Bounded by the provisioner's own limits: what does not start in time is hopeless.
        """
        await self._until(lambda: len(self._ready()) >= floor)
        with contextlib.suppress(TimeoutError):  # requests would wait for it, and find it
            async with asyncio.timeout(_REPORT_SECONDS):
                await self._until(
                    lambda: len(self.reports.gathering.reached.intersection(self._ready())) >= floor
                )
        places = self.provisioner.places()
        return [places[replica] for replica in self._ready() if replica in places]

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def freeze(self) -> None:
        """Decide nothing more: the server ends."""
        self._driver.close()

    def kill(self) -> None:
        """End all replicas, now."""
        self.provisioner.kill()

    async def close(self) -> Sequence[str]:
        """End all replicas; return the names of those that did not end well."""
        return await self.provisioner.close()

    # From the provisioner

    def replica_up(self, replica: ReplicaId, *, address: str, seconds: Seconds) -> None:
        """See ReplicaEvents."""
        self.decisions.take("ready", replica, f"ready after {seconds:.1f} s")
        self._was_up[replica] = address
        self._driver.feed(ReplicaUp(replica, seconds))
        self._tell_gateways()

    def replica_down(self, replica: ReplicaId, *, reason: str, restarts: bool) -> None:
        """See ReplicaEvents."""
        if restarts:
            self.decisions.take("died", replica, reason)
            self._events.pool_trouble(reason)
        else:
            self.decisions.take("gone", replica, reason)
            self._was_up.pop(replica, None)
        self._driver.feed(ReplicaDown(replica, restarts))

    def replica_hopeless(self, replica: ReplicaId, failure: Failed) -> None:
        """See ReplicaEvents."""
        self._events.pool_hopeless(failure)

    # Effects

    def _perform(self, effect: AutoscalerEffect) -> None:
        match effect:
            case Scaled(desired, present, reason):
                self.decisions.scale(desired=desired, present=present, reason=reason)
                _log.info("replicas %d -> %d: %s", present, desired, reason)
            case StartReplica(replica, reason):
                self.decisions.take("start", replica, reason)
                self.provisioner.start(replica)
            case BeginDrain(replica, reason):
                self.decisions.take("drain", replica, reason)
                self.reports.gathering.drains(replica, on=True)
                self._tell_gateways()
            case EndDrain(replica, reason):
                self.decisions.take("resume", replica, reason)
                self.reports.gathering.drains(replica, on=False)
                self._tell_gateways()
            case StopReplica(replica, reason):
                self.decisions.take("stop", replica, reason)
                self.reports.gathering.drains(replica, on=False)
                self._tell_gateways()
                self.provisioner.stop(replica)
            case _:
                assert_never(effect)

    def _tell_gateways(self) -> None:
        """Send the whole table. One that died stays in it: it comes back at its address."""
        stages = {replica: stage for replica, (stage, _) in self.autoscaler.stages().items()}
        members = [
            Member(
                replica=replica,
                address=address,
                draining=stages[replica] is Stage.DRAINING,
                drain_limit=self._drain_limit,
            )
            for replica, address in self._was_up.items()
            if stages.get(replica, Stage.STOPPING) is not Stage.STOPPING
        ]
        self._gateways.send_members(Members(tuple(members)))

    def _ready(self) -> list[ReplicaId]:
        stages = self.autoscaler.stages()
        return [replica for replica, (stage, _) in stages.items() if stage is Stage.READY]


def pool_load(report: PoolReport) -> PoolLoad:
    """Return what one gateway says, for the Autoscaler."""
    return PoolLoad(
        waiting=report.waiting,
        waiting_tokens=report.waiting_tokens,
        predicted_ttft=report.predicted_ttft,
        replicas=tuple(
            ReplicaLoad(
                replica=ReplicaId(each.replica),
                outstanding=each.outstanding,
                prefill_tokens=each.prefill_tokens,
                kv_used=each.kv_used,
                prefill_rate=each.prefill_rate,
                computed_tokens=each.computed_tokens,
                max_num_seqs=each.max_num_seqs,
            )
            for each in report.replicas
        ),
    )
