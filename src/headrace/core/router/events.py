"""Events and effects of the Request Router.

An **attempt** is one stay of a request at one replica. The first attempt has the request's own
id, the k-th ``ID~k``: what a replica says of an attempt that was given up names an id that nobody
knows any more (fencing). Clients see only their own ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from headrace.core.balancer.policy import Choice, ReplicaFacts
from headrace.core.health import ReplicaState as ReplicaState  # noqa: TC001  (users find it here)
from headrace.machine import Tick

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.core.router.gossip import Load
    from headrace.core.router.knowledge import KvKnowledge
    from headrace.core.router.lanes import LaneKey
    from headrace.types import (
        BlockKey,
        Output,
        ReplicaId,
        ReportLoad,
        Request,
        RequestId,
        Seconds,
        Tokens,
    )


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """The choices of one client request: admitted, queued and placed together.

    Their ids are new, and they share one deadline. ``prompt_tokens`` is an estimate where the
    prompt was not tokenised (foreign replicas); None: the prompt's own length.
    """

    requests: tuple[Request, ...]
    prompt_tokens: Tokens | None = None


@dataclass(frozen=True, slots=True)
class ClientGone:
    """Nobody wants these any more: the client left, or its answer is complete without them."""

    request_ids: tuple[RequestId, ...]


@dataclass(frozen=True, slots=True)
class ReplicaReady:
    """A replica takes requests. Its prefix cache is empty until KvListed or KvReported come.

    ``epoch`` tells its lives apart: of two of one replica, the later one's is higher.
    """

    replica: ReplicaId
    facts: ReplicaFacts = field(default_factory=ReplicaFacts)
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaLost:
    """Nothing more comes from this replica's attempts. ``dismissed``: it was told to end."""

    replica: ReplicaId
    reason: str
    dismissed: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaBeat:
    """A replica's heartbeat: sent at fixed intervals whether or not there is work.

    ``kv_changes`` is the number of its latest KvReported, None if it has none to tell of.
    """

    replica: ReplicaId
    kv_changes: int | None = None


@dataclass(frozen=True, slots=True)
class DrainReplica:
    """Send nothing new there. What is left after ``limit`` seconds goes on elsewhere.

    One that is not connected is empty at once, and a drain ends with the connection: whoever wants
    it to outlast that says it again after ReplicaReady.
    """

    replica: ReplicaId
    limit: Seconds


@dataclass(frozen=True, slots=True)
class ResumeReplica:
    """The drain is off."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class Outputs:
    """New tokens of one step of one replica. ``request_id`` of each names an attempt.

    A foreign replica's first bytes are an Output without tokens, its end one with ``finish``.
    """

    replica: ReplicaId
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed:
    """An attempt that ended badly while its replica lives; ``code`` is one of errors.py.

    ``retryable``: another replica may do better. ``to_blame``: counts against the replica.
    ``busy_for``: the replica is full for so many seconds (its Retry-After), which is no fault.
    ``retry_after``: it would refuse this request again for so long, though not every other.
    """

    replica: ReplicaId
    request_id: RequestId
    code: str
    reason: str
    retryable: bool = False
    to_blame: bool = False
    busy_for: Seconds | None = None
    retry_after: Seconds | None = None


@dataclass(frozen=True, slots=True)
class LoadSeen:
    """A replica's metrics show so many requests that did not come by this router."""

    replica: ReplicaId
    past_us: int


@dataclass(frozen=True, slots=True)
class LoadReported:
    """What a replica says of itself."""

    replica: ReplicaId
    report: ReportLoad


@dataclass(frozen=True, slots=True)
class KvReported:
    """A change of a replica's prefix cache; see core/scheduler/events.py, KvChanged.

    ``number`` counts from 1 in each of the replica's lives (``epoch``, as in ReplicaReady).
    """

    replica: ReplicaId
    number: int
    stored: tuple[BlockKey, ...]
    removed: tuple[BlockKey, ...]
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class KvListed:
    """All content of a replica's prefix cache after change ``number`` of that life."""

    replica: ReplicaId
    number: int
    keys: tuple[BlockKey, ...]
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class PeersHeard:
    """What other gateways do with the same replicas: for some of them their load now, all others
    together, and what they served to tenants since the last such event."""

    loads: Mapping[ReplicaId, Load]
    service: Mapping[LaneKey, float]


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new, finish what was accepted; what is left after ``limit`` seconds fails."""

    limit: Seconds


RouterEvent: TypeAlias = (
    RequestArrived
    | ClientGone
    | ReplicaReady
    | ReplicaLost
    | ReplicaBeat
    | DrainReplica
    | ResumeReplica
    | Outputs
    | AttemptFailed
    | LoadReported
    | LoadSeen
    | KvReported
    | KvListed
    | PeersHeard
    | Drain
    | Tick
)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send this attempt (``request.id`` is the attempt's) to that replica, and why there."""

    replica: ReplicaId
    request: Request
    choice: Choice
    client_id: RequestId
    waited: Seconds  # in the router's queue, for this attempt


@dataclass(frozen=True, slots=True)
class CancelAt:
    """Tell the replica that nobody wants this attempt any more."""

    replica: ReplicaId
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class GoOn:
    """An attempt is given up, and its request waits for another place. Comes before CancelAt.

    ``num_tokens`` were delivered and are kept: more than 0 is a migration, 0 a retry, or a request
    that is placed anew because a replica has joined. ``has_begun``: an answer whose tokens nobody
    here counts (a foreign replica's) has begun, which is a migration too.
    ``planned``: a hand-over between roles. ``hedged``: it waited there in vain (hedging.py).
    """

    request_id: RequestId  # the client's
    replica: ReplicaId
    reason: str
    num_tokens: Tokens
    has_begun: bool = False
    planned: bool = False
    hedged: bool = False


@dataclass(frozen=True, slots=True)
class Deliver:
    """Tokens for clients, by their own ids. An Output with ``finish`` is the last of its kind."""

    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Fail:
    """The end of a request without an answer; ``code`` is one of errors.py."""

    request_id: RequestId
    code: str
    reason: str
    retry_after: Seconds | None = None


@dataclass(frozen=True, slots=True)
class ReplicaJudged:
    """A replica's state in this router has changed."""

    replica: ReplicaId
    state: ReplicaState
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicaEmptied:
    """A draining replica has none of our requests left. Said once for each drain."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class WantSnapshot:
    """A change of this replica's prefix cache was missed: ask it for all of it."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class KnowledgeChanged:
    """What is known of this replica's prefix cache is worth more or less than before."""

    replica: ReplicaId
    knowledge: KvKnowledge
    reason: str


@dataclass(frozen=True, slots=True)
class PolicyFailed:
    """The policy raised: it is replaced by least_requests, and no request suffers (fail open)."""

    policy: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Every accepted request has ended, and no new one comes. Said once."""


RouterEffect: TypeAlias = (
    Dispatch
    | CancelAt
    | GoOn
    | Deliver
    | Fail
    | ReplicaJudged
    | ReplicaEmptied
    | WantSnapshot
    | KnowledgeChanged
    | PolicyFailed
    | Drained
)
