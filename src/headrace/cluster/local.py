"""LocalProvisioner: replicas are processes of this machine, children of the supervisor.

A replica that dies is started again under its name, with back-off, and listens at its address
anew: gateways find it there by themselves.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headrace.server.keeper import Keeper
from headrace.server.provisioner import Place
from headrace.types import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.clock import Clock
    from headrace.server.child import Ready
    from headrace.server.keeper import Death, KeeperLimits
    from headrace.server.process import ChildSpec
    from headrace.server.provisioner import ReplicaEvents
    from headrace.types import ReplicaId, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReplica:
    """How to start one replica, and where it will listen."""

    spec: ChildSpec
    address: str
    role: Role = Role.MIXED


class ProgressEvents(Protocol):
    """Who tells people of replicas that take their time."""

    def child_progress(self, child: str, text: str) -> None:
        """See KeeperEvents."""
        ...


class LocalProvisioner:
    """Implements Provisioner. ``describe`` says how a replica of a name is started."""

    def __init__(
        self,
        describe: Callable[[ReplicaId], LocalReplica],
        *,
        events: ReplicaEvents,
        progress: ProgressEvents,
        limits: KeeperLimits,
        clock: Clock,
    ) -> None:
        self._describe = describe
        self._events = events
        self._progress = progress
        self._limits = limits
        self._clock = clock
        self._kept: dict[ReplicaId, _Kept] = {}

    def start(self, replica: ReplicaId) -> None:
        """See Provisioner."""
        local = self._describe(replica)
        kept = _Kept(replica, local, self._events, self._progress)
        keeper = Keeper(local.spec, limits=self._limits, events=kept, clock=self._clock)
        kept.keep(keeper)
        self._kept[replica] = kept
        kept.task.add_done_callback(lambda _: self._gone(replica))

    def stop(self, replica: ReplicaId) -> None:
        """See Provisioner."""
        if replica in self._kept:
            self._kept[replica].keeper.end()

    def places(self) -> Mapping[ReplicaId, Place]:
        """See Provisioner."""
        return {replica: kept.place() for replica, kept in self._kept.items()}

    def kill(self) -> None:
        """See Provisioner."""
        for kept in self._kept.values():
            kept.keeper.kill()

    async def close(self) -> Sequence[str]:
        """See Provisioner."""
        kept = tuple(self._kept.values())
        for each in kept:
            each.keeper.end()
        ended = await asyncio.gather(*(each.task for each in kept))
        return [each.keeper.child.name for each, well in zip(kept, ended, strict=True) if not well]

    def _gone(self, replica: ReplicaId) -> None:
        address = self._kept.pop(replica).place().address
        Path(address).unlink(missing_ok=True)  # nobody listens there any more
        self._events.replica_down(replica, reason="it was stopped", restarts=False)


class _Kept:
    """One replica: a keeper, and its reports under the replica's name."""

    def __init__(
        self,
        replica: ReplicaId,
        local: LocalReplica,
        events: ReplicaEvents,
        progress: ProgressEvents,
    ) -> None:
        self.keeper: Keeper
        self.task: asyncio.Task[bool]
        self._replica = replica
        self._address = local.address
        self._role = local.role
        self._events = events
        self._progress = progress
        self._reason = ""

    def keep(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.task = asyncio.create_task(keeper.run())

    def place(self) -> Place:
        report = self.keeper.child.report
        return Place(
            address=self._address,
            role=self._role,
            pid=self.keeper.child.pid,
            restarts=self.keeper.num_deaths,
            is_crash_loop=self.keeper.is_crash_loop,
            kv_tokens=0 if report is None else report.kv_tokens,
            reason=self._reason,
        )

    def child_progress(self, child: str, text: str) -> None:
        """See KeeperEvents."""
        self._progress.child_progress(child, text)

    def child_ready(self, child: str, report: Ready, seconds: Seconds) -> None:
        """See KeeperEvents."""
        self._events.replica_up(self._replica, address=self._address, seconds=seconds)

    def child_died(self, death: Death) -> None:
        """See KeeperEvents."""
        self._reason = death.cause
        if death.hopeless is not None:
            self._events.replica_hopeless(self._replica, death.hopeless)
        self._events.replica_down(self._replica, reason=str(death), restarts=True)
