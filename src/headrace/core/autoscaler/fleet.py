"""The replicas that there are, by stage. Names are counted up and never used again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.autoscaler.events import Stage
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.core.autoscaler.events import ReplicaLoad
    from headrace.types import Seconds


@dataclass(slots=True)
class Replica:
    """One replica. ``retiring``: an operator wants it gone, load does not bring it back."""

    name: ReplicaId
    number: int
    stage: Stage
    since: Seconds  # in this stage
    retiring: bool = False

    @property
    def counts(self) -> bool:
        """Whether it serves, or will."""
        return self.stage in (Stage.STARTING, Stage.READY) and not self.retiring


class Fleet:
    """Replicas in the order of their names."""

    def __init__(self) -> None:
        self._replicas: dict[ReplicaId, Replica] = {}
        self._num_named = 0

    def __iter__(self) -> Iterator[Replica]:
        return iter(tuple(self._replicas.values()))

    @property
    def present(self) -> int:
        """Replicas that serve or will."""
        return sum(replica.counts for replica in self)

    def find(self, name: ReplicaId) -> Replica | None:
        """Return a replica, None if it is gone."""
        return self._replicas.get(name)

    def add(self, now: Seconds) -> Replica:
        """Name a replica that starts."""
        number = self._num_named
        self._num_named += 1
        replica = Replica(ReplicaId(f"r{number}"), number, Stage.STARTING, now)
        self._replicas[replica.name] = replica
        return replica

    def remove(self, replica: Replica) -> None:
        """Forget a replica that is gone."""
        del self._replicas[replica.name]

    def staying(self, stage: Stage) -> list[Replica]:
        """Replicas of a stage that no operator sends away, oldest first."""
        return [each for each in self if each.stage is stage and not each.retiring]


def victim(replicas: list[Replica], loads: Mapping[ReplicaId, ReplicaLoad]) -> Replica:
    """Return the one that costs least to lose: least work left, the youngest among equals.

    One that does not serve yet comes first.
    """

    def cost(replica: Replica) -> tuple[bool, int, float, int]:
        load = loads.get(replica.name)
        work = (load.outstanding, load.kv_used) if load is not None else (0, 0.0)
        return (replica.stage is not Stage.STARTING, *work, -replica.number)

    return min(replicas, key=cost)
