"""Provisioner: starts and ends replicas somewhere. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.types import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.server.child import Failed
    from headrace.types import ReplicaId, Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a replica runs and how it fares. ``reason``: of its last death."""

    address: str
    role: Role = Role.MIXED
    pid: int | None = None  # None while it has no process
    restarts: int = 0
    is_crash_loop: bool = False
    kv_tokens: Tokens = 0  # 0 before it was ready
    reason: str = ""


class ReplicaEvents(Protocol):
    """What a Provisioner reports, on the controller's loop; must not block or raise."""

    def replica_up(self, replica: ReplicaId, *, address: str, seconds: Seconds) -> None:
        """It is ready; gateways reach it at ``address``. ``seconds`` since it was started."""
        ...

    def replica_down(self, replica: ReplicaId, *, reason: str, restarts: bool) -> None:
        """It ended. ``restarts``: another process takes its place after a pause."""
        ...

    def replica_hopeless(self, replica: ReplicaId, failure: Failed) -> None:
        """It never was ready and will hardly be. Comes before ``replica_down``; tries go on."""
        ...


class Provisioner(Protocol):
    """Places where replicas run: local processes, Ray actors, pods."""

    def start(self, replica: ReplicaId) -> None:
        """Begin to start a replica; ReplicaEvents tell the rest."""
        ...

    def stop(self, replica: ReplicaId) -> None:
        """End a replica for good: asked first, killed after its grace. Idempotent."""
        ...

    def places(self) -> Mapping[ReplicaId, Place]:
        """Return all replicas that were started and are not gone."""
        ...

    def kill(self) -> None:
        """End them all, now."""
        ...

    async def close(self) -> Sequence[str]:
        """End them all as ``stop`` does; return the names of those that did not end well."""
        ...


class NoProvisioner:
    """Implements Provisioner where others run the replicas."""

    def start(self, replica: ReplicaId) -> None:
        """See Provisioner. Nobody asks for one: the range is 0 to 0."""
        raise AssertionError(f"nobody can start {replica}")

    def stop(self, replica: ReplicaId) -> None:
        """See Provisioner."""

    def places(self) -> Mapping[ReplicaId, Place]:
        """See Provisioner."""
        return {}

    def kill(self) -> None:
        """See Provisioner."""

    async def close(self) -> Sequence[str]:
        """See Provisioner."""
        return ()
