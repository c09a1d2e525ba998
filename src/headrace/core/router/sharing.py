"""Sharing: a Router's fleet as other gateways are told of it, and theirs in its counts."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from headrace.core.router.gossip import PoolShare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.core.router.fleet import Fleet
    from headrace.core.router.gossip import Load
    from headrace.core.router.lanes import LaneKey
    from headrace.types import ReplicaId, Seconds

MAX_TOLD = 256
"""Tenants in one saying, those served last."""


def share_of(fleet: Fleet, service: dict[LaneKey, float]) -> PoolShare:
    """Return our loads, and of ``service`` (the latest last) the newest entries."""
    loads = {replica: m.own for replica, m in fleet.members.items() if m.attempts}
    newest = islice(reversed(service), MAX_TOLD)
    return PoolShare(loads, {key: service[key] for key in newest})


def hear(fleet: Fleet, loads: Mapping[ReplicaId, Load], now: Seconds) -> None:
    """Other gateways together have so much on these replicas, connected here or not."""
    for replica, load in loads.items():
        if any(load):
            fleet.elsewhere[replica] = load
        else:
            fleet.elsewhere.pop(replica, None)
        member = fleet.members.get(replica)
        if member is not None:
            member.hear(load, now)
