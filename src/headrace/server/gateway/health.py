"""Whether this server is any good: alive, ready, and whether steps progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.router.placement import ReplicaView
    from headrace.types import Seconds


class ReplicaHealth(Struct, frozen=True):
    """One replica. ``ok`` if it has nothing of ours to do, or did a step lately."""

    replica: str
    ok: bool
    requests: int
    seconds_since_progress: float


class Health(Struct, frozen=True):
    """The answer of /health and /ready."""

    ok: bool
    reasons: list[str]
    replicas: list[ReplicaHealth]


def judge(
    views: Sequence[ReplicaView], *, draining: bool, now: Seconds, stuck_after: Seconds
) -> Health:
    """Return the state of the whole: fine as long as one replica takes requests and does steps."""
    replicas = [_judge_replica(view, now, stuck_after) for view in views]
    reasons = [
        f"{each.replica}: {each.requests} requests and no step for "
        f"{each.seconds_since_progress:.1f} s"
        for each in replicas
        if not each.ok
    ]
    if draining:
        reasons.append("draining")
    if not replicas:
        reasons.append("no replica is ready")
    ok = not draining and any(each.ok for each in replicas)
    return Health(ok, reasons, replicas)


def _judge_replica(view: ReplicaView, now: Seconds, stuck_after: Seconds) -> ReplicaHealth:
    silence = now - view.progress_at if view.outstanding else 0.0
    return ReplicaHealth(view.replica, silence < stuck_after, view.outstanding, round(silence, 3))
