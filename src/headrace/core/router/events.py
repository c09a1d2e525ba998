"""Events and effects of the Request Router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from headrace.machine import Tick

if TYPE_CHECKING:
    from headrace.types import Output, ReplicaId, ReportLoad, Request, RequestId, Seconds


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """The choices of one client request: admitted, queued and placed together.

    Their ids are new, and they share one deadline.
    """

    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class ClientGone:
    """Nobody wants these any more: the client left, or its answer is complete without them."""

    request_ids: tuple[RequestId, ...]


@dataclass(frozen=True, slots=True)
class ReplicaReady:
    """A replica takes requests."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class ReplicaLost:
    """Nothing more comes from this replica's requests."""

    replica: ReplicaId
    reason: str


@dataclass(frozen=True, slots=True)
class Outputs:
    """New tokens of one step of one replica."""

    replica: ReplicaId
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class RejectedByReplica:
    """A request that this replica will not serve; ``code`` is one of errors.py."""

    replica: ReplicaId
    request_id: RequestId
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoadReported:
    """What a replica says of itself."""

    replica: ReplicaId
    report: ReportLoad


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new, finish what was accepted; what is left after ``limit`` seconds fails."""

    limit: Seconds


RouterEvent: TypeAlias = (
    RequestArrived
    | ClientGone
    | ReplicaReady
    | ReplicaLost
    | Outputs
    | RejectedByReplica
    | LoadReported
    | Drain
    | Tick
)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send this request to that replica, and why there."""

    replica: ReplicaId
    request: Request
    reason: str


@dataclass(frozen=True, slots=True)
class CancelAt:
    """Tell the replica that nobody wants this request any more."""

    replica: ReplicaId
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Deliver:
    """Tokens for clients. An Output with ``finish`` set is the last of its request."""

    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Fail:
    """The end of a request without an answer; ``code`` is one of errors.py."""

    request_id: RequestId
    code: str
    reason: str
    retry_after: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Drained:
    """Every accepted request has ended, and no new one comes. Said once."""


RouterEffect: TypeAlias = Dispatch | CancelAt | Deliver | Fail | Drained
