"""Whether this server is any good: alive, ready, and whether steps progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from headrace.core.health import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import ReplicaView
    from headrace.types import Seconds


_TAKING = (ReplicaState.READY, ReplicaState.PROBING)


class ReplicaHealth(Struct, frozen=True):
    """One replica. ``ok`` if it takes requests, and did a step lately or has nothing to do."""

    replica: str
    ok: bool
    requests: int
    seconds_since_progress: float
    state: str = ReplicaState.READY


class Health(Struct, frozen=True):
    """The answer of /health and /ready."""

    ok: bool
    reasons: list[str]
    replicas: list[ReplicaHealth]


def judge(
    views: Sequence[tuple[ReplicaView, ReplicaState]],
    *,
    draining: bool,
    now: Seconds,
    stuck_after: Seconds,
) -> Health:
    """Return the state of the whole: fine as long as one replica takes requests and does steps."""
    replicas = [_judge_replica(view, state, now, stuck_after) for view, state in views]
    reasons = [_reason(each) for each in replicas if not each.ok]
    if draining:
        reasons.append("draining")
    if not replicas:
        reasons.append("no replica is ready")
    ok = not draining and any(each.ok for each in replicas)
    return Health(ok, reasons, replicas)


def _judge_replica(
    view: ReplicaView, state: ReplicaState, now: Seconds, stuck_after: Seconds
) -> ReplicaHealth:
    silence = now - view.progress_at if view.outstanding else 0.0
    ok = state in _TAKING and silence < stuck_after
    return ReplicaHealth(view.replica, ok, view.outstanding, round(silence, 3), state)


def _reason(replica: ReplicaHealth) -> str:
    if replica.state not in _TAKING:
        return f"{replica.replica}: {replica.state}"
    return (
        f"{replica.replica}: {replica.requests} requests and no step for "
        f"{replica.seconds_since_progress:.1f} s"
    )
