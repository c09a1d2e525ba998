"""Lanes: who waits for a place, by class and tenant, and who is next.

The most urgent class goes first. Inside a class tenants take turns by start-time fair queueing
(Goyal, Vin and Cheng 1996): a lane's next group begins, in virtual time, where its last one ended,
and lasts work / weight; the earliest beginning is next. Whoever waits at all times gets its share,
whoever comes back after a pause has saved nothing up. One place in ``AGED_TURN`` goes to whoever
has waited longest, so that nobody starves behind more urgent classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import InvariantBroken
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.core.router.requests import Tracked
    from headrace.types import Request, RequestId, Seconds

AGED_TURN = 16
MAX_IDLE = 1024  # lanes that wait for nothing, remembered for what they owe
TYPICAL_OUTPUT = 128  # tokens; what an answer weighs beside its prompt

_RANKS = {each: rank for rank, each in enumerate(PriorityClass)}


@dataclass(slots=True)
class Group:
    """Requests that wait together to be placed together."""

    members: dict[RequestId, Tracked]
    since: Seconds

    @property
    def first(self) -> Tracked:
        """The one whose prompt decides."""
        return next(iter(self.members.values()))

    @property
    def work(self) -> float:
        """What it asks for, in virtual time of a tenant of weight 1."""
        members = self.members.values()
        return sum([each.prompt_tokens + TYPICAL_OUTPUT for each in members])


class LaneKey(NamedTuple):
    """One tenant's requests of one class; rank 0 is the most urgent."""

    rank: int
    tenant: str


@dataclass(slots=True)
class Lane:
    """Groups in order of arrival. ``begins``: the next one, in virtual time."""

    weight: float = 1.0
    begins: float = 0.0
    num_requests: int = 0
    groups: dict[RequestId, Group] = field(default_factory=dict)

    @property
    def head(self) -> Group:
        """The next group; there is one."""
        return next(iter(self.groups.values()))

    @property
    def share(self) -> float:
        """Requests for each unit of weight."""
        return self.num_requests / self.weight


class Lanes:
    """All groups that wait for their first place. Not ``is_fair``: one lane for everybody."""

    def __init__(self, *, is_fair: bool) -> None:
        self._is_fair = is_fair
        self._lanes: dict[LaneKey, Lane] = {}
        self._time = dict.fromkeys(range(len(_RANKS)), 0.0)  # virtual, of each class
        self._num_taken = 0
        self.service: dict[LaneKey, float] = {}  # work / weight done here, the latest last

    def __iter__(self) -> Iterator[Group]:
        return (group for lane in self._lanes.values() for group in lane.groups.values())

    def append(self, group: Group) -> None:
        """Add a group behind the others of its lane."""
        request = group.first.request
        key = self._key(request)
        lane = self._lanes.setdefault(key, Lane())
        if not lane.groups:
            lane.begins = max(lane.begins, self._time[key.rank])
        lane.weight = request.weight
        lane.groups[group.first.group] = group
        lane.num_requests += len(group.members)

    def head(self) -> Group | None:
        """The group that is next, or None."""
        key = self._next()
        return None if key is None else self._lanes[key].head

    def pop(self) -> Group | None:
        """Take the head."""
        key = self._next()
        if key is None:
            return None
        lane = self._lanes[key]
        group = lane.head
        self._num_taken += 1
        self._time[key.rank] = max(self._time[key.rank], lane.begins)
        self._note_service(key, group.work / lane.weight)
        lane.begins += group.work / lane.weight
        del lane.groups[group.first.group]
        lane.num_requests -= len(group.members)
        self._forget(key.rank)
        return group

    def pass_by(self, group: Group) -> None:
        """A group is next that never entered, since nobody waits: as if it had done both."""
        self._num_taken += 1
        request = group.first.request
        self._note_service(self._key(request), group.work / request.weight)

    def remove(self, tracked: Tracked) -> None:
        """Take out one member, and its group with the last of them."""
        lane = self._lanes[self._key(tracked.request)]
        group = lane.groups[tracked.group]
        del group.members[tracked.id]
        lane.num_requests -= 1
        if not group.members:
            del lane.groups[tracked.group]
            self._forget(self._key(tracked.request).rank)

    def serve_elsewhere(self, key: LaneKey, amount: float) -> None:
        """A tenant got so much at other gateways: here it has the less to come, while some wait."""
        if not any(lane.groups for each, lane in self._lanes.items() if each.rank == key.rank):
            return
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= MAX_IDLE:
                return
            lane = self._lanes[key] = Lane()
        if not lane.groups:
            lane.begins = max(lane.begins, self._time[key.rank])
        lane.begins += amount

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless counts agree with what they count."""
        for key, lane in self._lanes.items():
            counted = sum(len(group.members) for group in lane.groups.values())
            if counted != lane.num_requests or not all(g.members for g in lane.groups.values()):
                raise InvariantBroken(f"{key}: {counted} wait, counted are {lane.num_requests}")

    def oldest(self) -> Group | None:
        """The group that has waited longest, or None."""
        heads = (lane.head for lane in self._lanes.values() if lane.groups)
        return min(heads, key=_since, default=None)

    def yielding(self, request: Request, num_requests: int) -> Iterator[Group]:
        """Yield who has less claim to wait than so many like ``request``, the least one first.

        Those of less urgent classes, the newest of the tenants that have most; then of the own
        class those of the tenant that has most, as long as that is more than the newcomer would.
        """
        mine = self._key(request)
        for key, lane in sorted(self._lanes.items(), key=_least_claim):
            if key.rank > mine.rank:
                yield from reversed(lane.groups.values())
        rivals = [lane for key, lane in self._lanes.items() if key.rank == mine.rank]
        if not rivals:
            return
        most = max(rivals, key=_share)
        own = self._lanes.get(mine)
        wanted = ((own.num_requests if own else 0) + num_requests) / request.weight
        count = most.num_requests
        for group in reversed(most.groups.values()):
            if most is own or count / most.weight <= wanted:
                return
            count -= len(group.members)
            yield group

    def _note_service(self, key: LaneKey, amount: float) -> None:
        if self._is_fair:
            self.service[key] = self.service.pop(key, 0.0) + amount
            if len(self.service) > MAX_IDLE:
                del self.service[next(iter(self.service))]

    def _key(self, request: Request) -> LaneKey:
        if not self._is_fair:
            return LaneKey(0, "")
        return LaneKey(_RANKS[request.priority], request.tenant)

    def _next(self) -> LaneKey | None:
        waiting = [(key, lane) for key, lane in self._lanes.items() if lane.groups]
        if not waiting:
            return None
        if self._num_taken % AGED_TURN == AGED_TURN - 1:
            return min(waiting, key=_age)[0]
        return min(waiting, key=_turn)[0]

    def _forget(self, rank: int) -> None:
        """Drop lanes that wait for nothing and owe nothing; all, once nobody of a class waits."""
        lanes = [(key, lane) for key, lane in self._lanes.items() if key.rank == rank]
        idle = [(key, lane) for key, lane in lanes if not lane.groups]
        if len(idle) == len(lanes):
            self._time[rank] = 0.0
        elif len(idle) <= MAX_IDLE:
            idle = [(key, lane) for key, lane in idle if lane.begins <= self._time[rank]]
        for key, _ in idle:
            del self._lanes[key]


def _since(group: Group) -> Seconds:
    return group.since


def _share(lane: Lane) -> float:
    return lane.share


def _least_claim(item: tuple[LaneKey, Lane]) -> tuple[int, float]:
    return -item[0].rank, -item[1].share


def _turn(item: tuple[LaneKey, Lane]) -> tuple[int, float, Seconds]:
    return item[0].rank, item[1].begins, item[1].head.since


def _age(item: tuple[LaneKey, Lane]) -> Seconds:
    return item[1].head.since
