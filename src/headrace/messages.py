"""Every struct that crosses a process boundary.

A frame on the wire is ``length (u32, little-endian) | VERSION (u8) | message (msgpack)``; the
framing itself is in server/transport/frames.py. Messages are msgpack arrays whose first element
is a small integer that names the struct, so that a frame with the tokens of a step stays small.

    gateway -> engine       Hello, SubmitRequest, AbortRequest, KvSnapshotRequest
    engine -> gateway       Welcome, TokenFrame, Rejected, Load, Beat, KvChange, KvContent
    controller -> gateway   Members, Ask, Answer
    gateway -> controller   Hello, PoolReport, Emptied, Answer, AskAll, Farewell
    gateway -> gateway      Gossip (datagrams: a version byte, then the message)

A *stream* is one request on one connection: a number that the gateway counts up, never used again
on that connection. Token ids of a prompt travel as packed u32 (little-endian). Times are
durations: the receiver adds ``time_left`` to its own clock.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct, msgpack

from headrace.types import (
    NO_TIERS,
    Constraint,
    FinishReason,
    KvSource,
    PriorityClass,
    Role,
    SamplingParams,
    TierFigures,
)

VERSION: Final = 4

U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Count = Annotated[int, Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]
"""A number of tokens, blocks or steps."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Hello(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """The first frame of a gateway. A controller is told its life: no other process has it."""

    gateway: Name


class SubmitRequest(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2, kw_only=True
):
    """A generation; the fields are those of ``types.Request``, its times as durations."""

    stream: U32
    request_id: Name
    prompt: bytes  # u32 little-endian
    max_tokens: Count
    min_tokens: Count
    stop_token_ids: tuple[U32, ...]
    sampling: SamplingParams
    chain: tuple[bytes, ...]
    chain_root: bytes
    num_prior: Count
    time_left: float | None  # seconds
    tenant: str
    priority: PriorityClass
    first_token_in: float | None = None  # seconds
    itl: float | None = None  # seconds
    session: str = ""
    retention: float | None = None  # seconds
    constraint: Constraint | None = None
    weight: float = 1.0
    source: KvSource | None = None


class AbortRequest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Nobody wants this stream any more. Unknown ones are ignored."""

    stream: U32


class Welcome(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4, kw_only=True
):
    """The first frame of an engine: it is ready and takes requests."""

    replica: Name
    model_identity: Name
    vocab_size: Count
    max_model_len: Count
    block_size: Count
    num_blocks: Count
    max_num_seqs: Count
    pid: Count
    max_num_batched_tokens: Count = 0
    epoch: Count = 0  # of two lives of one replica, the later one's is higher
    role: Role = Role.MIXED
    lends_at: str = ""
    peer_block_seconds: float = 0.0


class Logprobs(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``types.TokenLogprobs``."""

    token: U32
    logprob: float
    top: tuple[tuple[U32, float], ...]


class Timing(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``types.EngineTiming``, in seconds."""

    waited: float
    prefill: float
    chunks: Count
    preemptions: Count


class TokenRow(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a step gave one stream, where that is more than one plain token."""

    stream: U32
    tokens: tuple[U32, ...]
    finish: FinishReason | None
    cached_tokens: Count
    logprobs: tuple[Logprobs, ...]
    reason: str
    timing: Timing | None = None


class TokenFrame(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """All tokens that one step produced for one connection.

    Most rows of most steps are one token of a stream that goes on: those are the two columns
    ``streams`` and ``tokens``, of equal length. Everything else is in ``rows``. A stream is in a
    frame at most once.
    """

    streams: list[U32]
    tokens: list[U32]
    rows: list[TokenRow]


class Rejected(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """A stream that this engine will not serve; ``code`` is one of errors.py.

    ``retry_after``: seconds until it might, where it can say.
    """

    stream: U32
    code: str
    reason: str
    retry_after: Annotated[float, Meta(ge=0)] | None = None


class Load(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7, kw_only=True):
    """A load report; the fields are those of ``types.ReportLoad``."""

    step: Count
    running: Count
    waiting: Count
    waiting_tokens: Count
    kv_blocks_total: Count
    kv_blocks_free: Count
    kv_blocks_cached: Count
    prompt_tokens_total: Count
    cached_tokens_total: Count
    output_tokens_total: Count
    discarded_tokens_total: Count
    preemptions_total: Count
    step_seconds_total: float
    computed_tokens_total: Count = 0
    recomputed_tokens_total: Count = 0
    draft_tokens_total: Count = 0
    accepted_drafts_total: Count = 0
    kv_blocks_pinned: Count = 0
    kv_evicted_total: Count = 0
    kv_regretted_total: Count = 0
    tiers: TierFigures = NO_TIERS
    kv_blocks_quarantined: Count = 0
    shed_total: Count = 0


class Beat(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8, kw_only=True):
    """An engine's heartbeat, at fixed intervals whether or not it has work.

    ``step_seconds`` is how long the step under way has taken so far, 0 without one.
    ``kv_changes`` is the number of the last KvChange, whether or not it was sent on this
    connection: a gateway that has not got it sees the gap though no other change follows.
    """

    step_seconds: float
    resident_bytes: Count
    open_fds: Count
    cpu_seconds: float  # of the process, since its start
    kv_changes: Count | None = None


class KvSnapshotRequest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=9):
    """A gateway has missed a change (or is new) and wants the whole content."""


class KvChange(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=10, kw_only=True
):
    """What the prefix cache gained and lost; keys are packed u64 (little-endian).

    ``number`` counts from 1 since the engine's start, ``epoch`` is that of its Welcome. Dropped
    first when a connection is full: the gateway sees the gap.
    """

    number: Count
    stored: bytes
    removed: bytes
    epoch: Count = 0


class KvContent(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=11, kw_only=True
):
    """The whole content of the prefix cache after change ``number``."""

    number: Count
    keys: bytes
    epoch: Count = 0


class Member(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """A replica that gateways may use. ``draining``: nothing new; the rest after ``drain_limit``
    seconds (from when the gateway first hears of the drain) goes on elsewhere."""

    replica: Name
    address: str  # path of its Unix socket
    draining: bool = False
    drain_limit: float = 0.0


class Members(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=20):
    """All replicas there are. Whoever is not in it any more is gone for good."""

    members: tuple[Member, ...]


class Ask(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=21):
    """A question of the admin plane: a path as in HTTP, e.g. ``/explain/ID``."""

    number: U32
    path: str


class Answer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=22):
    """The answer to the Ask of that number; ``status`` as in HTTP."""

    number: U32
    status: U32
    content_type: str
    body: bytes


class PoolReplica(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """``core.autoscaler.events.ReplicaLoad``."""

    replica: Name
    outstanding: Count
    prefill_tokens: Count
    kv_used: float
    prefill_rate: float
    computed_tokens: Count = 0
    max_num_seqs: Count = 0


class PoolReport(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=23, kw_only=True
):
    """``core.autoscaler.events.PoolLoad`` as one gateway sees it, some times a second."""

    gateway: Name
    waiting: Count
    waiting_tokens: Count
    predicted_ttft: float | None
    replicas: tuple[PoolReplica, ...]


class Emptied(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=24):
    """This gateway has no request left at that draining replica."""

    gateway: Name
    replica: Name


class AskAll(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=25):
    """A question that only all gateways together can answer; the controller's Answer has the
    same number. ``/metrics`` is the only one."""

    number: U32
    path: str


class Farewell(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=26):
    """The last word of a gateway that ends as it should: what it has counted (Prometheus text)."""

    figures: bytes


class GossipLoad(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``core.router.gossip.Load`` of one replica."""

    replica: Name
    outstanding: Count
    prefill_tokens: Count
    decoding: Count
    context_tokens: Count


class GossipPool(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``core.router.gossip.PoolShare``. ``service`` has (rank of the class, tenant, amount)."""

    loads: tuple[GossipLoad, ...]
    service: tuple[tuple[Count, str, float], ...]


class Gossip(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=27):
    """``core.router.gossip.Saying``: one gateway's state, whole, some ten times a second."""

    life: Name
    number: Count
    pools: dict[str, GossipPool]
    held: dict[str, Count]


ToEngine: TypeAlias = Hello | SubmitRequest | AbortRequest | KvSnapshotRequest
ToGateway: TypeAlias = Welcome | TokenFrame | Rejected | Load | Beat | KvChange | KvContent
FromController: TypeAlias = Members | Ask | Answer
ToController: TypeAlias = Hello | PoolReport | Emptied | Answer | AskAll | Farewell

encode = msgpack.Encoder().encode
decode_to_engine = msgpack.Decoder(ToEngine).decode
decode_to_gateway = msgpack.Decoder(ToGateway).decode
decode_from_controller = msgpack.Decoder(FromController).decode
decode_to_controller = msgpack.Decoder(ToController).decode
decode_gossip = msgpack.Decoder(Gossip).decode
