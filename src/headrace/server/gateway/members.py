"""Links to the replicas that there are, as the controller says.

A member's link connects and comes back by itself; it ends only when its replica is no member any
more. Without a controller the table stays as it was.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.core.router.events import DrainReplica, ResumeReplica
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.messages import Member
    from headrace.server.gateway.replicas import Replicas
    from headrace.server.gateway.traffic import Traffic


class KeptLink(Protocol):
    """A link that keeps itself connected."""

    async def run(self) -> None:
        """Connect, report, connect again; until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class _Place:
    address: str
    task: asyncio.Task[None]


class Membership:
    """One task for each member. ``make_link`` gets a replica's name and address."""

    def __init__(
        self,
        *,
        make_link: Callable[[ReplicaId, str], KeptLink],
        traffic: Traffic,
        replicas: Replicas,
    ) -> None:
        self._make_link = make_link
        self._traffic = traffic
        self._replicas = replicas
        self._places: dict[ReplicaId, _Place] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def update(self, members: Iterable[Member]) -> None:
        """Make the table this one: links begin and end, drains begin and end."""
        table = {ReplicaId(member.replica): member for member in members}
        for replica in list(self._places):
            if replica not in table:
                self._remove(replica)
        for replica, member in table.items():
            place = self._places.get(replica)
            if place is not None and place.address != member.address:
                self._remove(replica)
                place = None
            self._set_drain(replica, member)
            if place is None:
                task = asyncio.create_task(self._make_link(replica, member.address).run())
                self._places[replica] = _Place(member.address, task)

    async def close(self) -> None:
        """End all links."""
        for place in self._places.values():
            self._end(place.task)
        self._places.clear()
        if self._ending:
            await asyncio.wait(self._ending)

    def _set_drain(self, replica: ReplicaId, member: Member) -> None:
        """Tell the Router of a change; a replica that is not ready is told when it is."""
        draining = self._replicas.draining
        if member.draining and replica not in draining:
            draining[replica] = member.drain_limit
            self._traffic.feed(DrainReplica(replica, member.drain_limit))
        elif not member.draining and replica in draining:
            del draining[replica]
            self._traffic.feed(ResumeReplica(replica))

    def _remove(self, replica: ReplicaId) -> None:
        self._end(self._places.pop(replica).task)
        self._replicas.draining.pop(replica, None)
        self._traffic.dismiss(replica)

    def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
