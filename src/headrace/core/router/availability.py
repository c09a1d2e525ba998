"""Availability: which replicas may take a request now.

It is asked for every request and seldom changes, so the answer for those that are well is kept
until somebody comes, goes, drains, or gains or loses trust; what is looked at each time is room.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.core.balancer.candidates import Takers, takers_of
from headrace.core.health import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.core.health import FailureDetector
    from headrace.core.router.fleet import Member
    from headrace.types import ReplicaId, Seconds

_TAKING = (ReplicaState.READY, ReplicaState.PROBING)
URGENT_SHARE = 8
"""A replica takes 1/8 more than its limit of interactive requests: they pass who is there."""


class Open(NamedTuple):
    """Replicas that have room, and the same as policies see them."""

    members: Sequence[Member]
    takers: Takers


class _Well(NamedTuple):
    """Members that are to be trusted, full or not, as of a moment."""

    at: tuple[int, frozenset[ReplicaId]]  # changes of trust until then, and who drained
    everyone: Open
    is_probing: bool  # one or more take a single request to show whether they are well


class Availability:
    """Of a fleet's ``members``. ``drains`` has those that take nothing new."""

    def __init__(
        self,
        members: Mapping[ReplicaId, Member],
        drains: Mapping[ReplicaId, Seconds | None],
        health: FailureDetector,
        *,
        max_outstanding: int,
    ) -> None:
        self._members = members
        self._drains = drains
        self._health = health
        self._limit = max_outstanding
        self._urgent_limit = max_outstanding + -(-max_outstanding // URGENT_SHARE)
        self._well = _Well((-1, frozenset()), Open((), takers_of(())), is_probing=False)

    def state(self, replica: ReplicaId) -> ReplicaState:
        """Return what the Router thinks of a replica, drains included."""
        if replica not in self._members:
            return ReplicaState.LOST
        state = self._health.state(replica)
        draining = replica in self._drains and state is not ReplicaState.SUSPECT
        return ReplicaState.DRAINING if draining else state

    def taking(self) -> list[Member]:
        """Return the replicas that are of a state to take requests, full or not."""
        return [m for replica, m in self._members.items() if self.state(replica) in _TAKING]

    def open(self, now: Seconds, *, urgent: bool = False) -> Open:
        """Return the replicas that may take a request now. A few places are for urgent ones."""
        well = self._well
        if well.at[0] != self._health.num_changes or self._drains.keys() != well.at[1]:
            well = self._well = self._look()
        limit = self._urgent_limit if urgent else self._limit
        members = well.everyone.members
        room = [m for m in members if m.view.outstanding < limit and m.busy_until <= now]
        if well.is_probing:
            probing = ReplicaState.PROBING
            room = [m for m in room if not m.attempts or self.state(m.view.replica) is not probing]
        if len(room) == len(members):
            return well.everyone
        return Open(room, takers_of([member.view for member in room]))

    def busy_until(self, now: Seconds) -> Seconds | None:
        """When the first of those that said they are full may have room again."""
        times = (member.busy_until for member in self._members.values())
        return min((time for time in times if time > now), default=None)

    def look_again(self) -> None:
        """Something that policies see of a replica, and that seldom changes, has changed."""
        self._well = self._look()

    def _look(self) -> _Well:
        members = self.taking()
        states = [self._health.state(member.view.replica) for member in members]
        return _Well(
            (self._health.num_changes, frozenset(self._drains)),
            Open(members, takers_of([member.view for member in members])),
            is_probing=ReplicaState.PROBING in states,
        )
