"""Gathering: what several gateways say of one pool, as if one gateway saw it all.

A replica's work is the sum of theirs; what all see alike (its KV cache, its speed) is the largest
value, since some saw it earlier. A draining replica is empty when every gateway has none of its
requests left there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.autoscaler.events import PoolLoad, ReplicaLoad

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headrace.types import ReplicaId


class Gathering:
    """Of one pool. Gateways come with ``join`` and go with ``leave``."""

    def __init__(self) -> None:
        self._loads: dict[str, PoolLoad | None] = {}
        self._empty: dict[ReplicaId, set[str]] = {}

    def join(self, gateway: str) -> None:
        """A gateway is connected: from now on what it has counts."""
        self._loads[gateway] = None

    def leave(self, gateway: str) -> list[ReplicaId]:
        """A gateway is gone, its requests with it; return the drains that this completes."""
        self._loads.pop(gateway, None)
        for gateways in self._empty.values():
            gateways.discard(gateway)
        return [replica for replica in self._empty if self._is_empty(replica)]

    def load(self, gateway: str, load: PoolLoad) -> PoolLoad:
        """Take one gateway's report; return that of all."""
        self._loads[gateway] = load
        return summed([load for load in self._loads.values() if load is not None])

    @property
    def reached(self) -> frozenset[ReplicaId]:
        """The replicas that every gateway is connected to."""
        sets = [
            {each.replica for each in load.replicas} if load is not None else set()
            for load in self._loads.values()
        ]
        return frozenset(set.intersection(*sets)) if sets else frozenset()

    def drains(self, replica: ReplicaId, *, on: bool) -> None:
        """A drain begins or is off: what was said of an earlier one does not count."""
        self._empty.pop(replica, None)
        if on:
            self._empty[replica] = set()

    def emptied(self, gateway: str, replica: ReplicaId) -> bool:
        """One gateway has none left at a draining replica; return whether now nobody has any."""
        self._loads.setdefault(gateway, None)
        if replica in self._empty:
            self._empty[replica].add(gateway)
        return self._is_empty(replica)

    def _is_empty(self, replica: ReplicaId) -> bool:
        """Without any gateway nobody can say."""
        return bool(self._loads) and self._empty.get(replica, set()) >= self._loads.keys()


def summed(loads: Sequence[PoolLoad]) -> PoolLoad:
    """Return several gateways' reports as one."""
    if len(loads) == 1:
        return loads[0]
    parts: dict[ReplicaId, list[ReplicaLoad]] = {}
    for load in loads:
        for each in load.replicas:
            parts.setdefault(each.replica, []).append(each)
    predicted = (load.predicted_ttft for load in loads)
    return PoolLoad(
        waiting=sum(load.waiting for load in loads),
        waiting_tokens=sum(load.waiting_tokens for load in loads),
        predicted_ttft=max((each for each in predicted if each is not None), default=None),
        replicas=tuple(_replica(name, each) for name, each in parts.items()),
    )


def _replica(name: ReplicaId, parts: Iterable[ReplicaLoad]) -> ReplicaLoad:
    parts = list(parts)
    return ReplicaLoad(
        replica=name,
        outstanding=sum(part.outstanding for part in parts),
        prefill_tokens=sum(part.prefill_tokens for part in parts),
        kv_used=max(part.kv_used for part in parts),
        prefill_rate=max(part.prefill_rate for part in parts),
        computed_tokens=max(part.computed_tokens for part in parts),
        max_num_seqs=max(part.max_num_seqs for part in parts),
    )
