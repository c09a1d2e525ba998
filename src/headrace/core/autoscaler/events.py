"""Events and effects of the Autoscaler.

It owns the replica set: it names replicas, says which start and which drain. Whoever runs
processes (or pods, or actors) tells it what became of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from headrace.machine import Tick

if TYPE_CHECKING:
    from headrace.types import ReplicaId, Seconds, Tokens


class Stage(StrEnum):
    """Where a replica is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # takes nothing new; cancelled by CancelDrain
    STOPPING = "stopping"  # empty, told to end


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """One replica's work, as all gateways together see it."""

    replica: ReplicaId
    outstanding: int  # requests
    prefill_tokens: Tokens  # uncached prompt tokens of requests without a first token
    kv_used: float  # share of its KV blocks that running requests hold, 0 to 1
    prefill_rate: float  # prompt tokens a second that it computes when it computes; 0 unknown
    computed_tokens: Tokens = 0  # prompt tokens, since its start
    max_num_seqs: int = 0  # requests that it runs at one time; 0 unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """The whole pool's work, some times a second, from gateways and engines.

    ``waiting`` requests with ``waiting_tokens`` uncached prompt tokens have no replica yet.
    ``predicted_ttft`` is what the router predicts for a new request of the usual kind, None
    without an estimate.
    """

    waiting: int
    waiting_tokens: Tokens
    predicted_ttft: Seconds | None
    replicas: tuple[ReplicaLoad, ...]


@dataclass(frozen=True, slots=True)
class ReplicaUp:
    """A replica is ready, ``seconds`` after it was told to start."""

    replica: ReplicaId
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class ReplicaDown:
    """A replica died. ``restarts``: whoever runs it starts it again by itself; else it is gone."""

    replica: ReplicaId
    restarts: bool


@dataclass(frozen=True, slots=True)
class ReplicaEmpty:
    """A draining replica has no requests left, at any gateway."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class RangeAsked:
    """An operator wants at least ``floor`` and at most ``ceiling`` replicas."""

    floor: int
    ceiling: int


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """An operator wants this replica to end; a floor is kept by starting another one."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class DrainCancelled:
    """An operator wants a draining replica back."""

    replica: ReplicaId


AutoscalerEvent: TypeAlias = (
    PoolLoad
    | ReplicaUp
    | ReplicaDown
    | ReplicaEmpty
    | RangeAsked
    | DrainAsked
    | DrainCancelled
    | Tick
)


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Start a new replica of this name."""

    replica: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True)
class BeginDrain:
    """Send nothing new to this replica; answer with ReplicaEmpty."""

    replica: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True)
class EndDrain:
    """This replica takes requests again."""

    replica: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True)
class StopReplica:
    """End this replica for good; answer with ReplicaDown."""

    replica: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True)
class Scaled:
    """A decision to change the number of replicas, for journals: comes before what it causes."""

    desired: int
    present: int  # starting and ready ones, before
    reason: str


AutoscalerEffect: TypeAlias = StartReplica | BeginDrain | EndDrain | StopReplica | Scaled
