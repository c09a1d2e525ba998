"""Every struct that crosses a process boundary.

A frame on the wire is ``length (u32, little-endian) | VERSION (u8) | message (msgpack)``; the
framing itself is in server/transport/frames.py. Messages are msgpack arrays whose first element
is a small integer that names the struct, so that a frame with the tokens of a step stays small.

    gateway -> engine   Hello, SubmitRequest, AbortRequest
    engine -> gateway   Welcome, TokenFrame, Rejected, Load

A *stream* is one request on one connection: a number that the gateway counts up, never used again
on that connection. Token ids of a prompt travel as packed u32 (little-endian). Times are
durations: the receiver adds ``time_left`` to its own clock.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct, msgpack

from headrace.types import FinishReason, PriorityClass, SamplingParams

VERSION: Final = 1

U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Count = Annotated[int, Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]
"""A number of tokens, blocks or steps."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Hello(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """The first frame of a gateway."""

    gateway: Name


class SubmitRequest(
    Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2, kw_only=True
):
    """A generation; the fields are those of ``types.Request``."""

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


class Logprobs(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``types.TokenLogprobs``."""

    token: U32
    logprob: float
    top: tuple[tuple[U32, float], ...]


class TokenRow(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a step gave one stream, where that is more than one plain token."""

    stream: U32
    tokens: tuple[U32, ...]
    finish: FinishReason | None
    cached_tokens: Count
    logprobs: tuple[Logprobs, ...]
    reason: str


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
    """A stream that this engine will not serve; ``code`` is one of errors.py."""

    stream: U32
    code: str
    reason: str


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


ToEngine: TypeAlias = Hello | SubmitRequest | AbortRequest
ToGateway: TypeAlias = Welcome | TokenFrame | Rejected | Load

encode = msgpack.Encoder().encode
decode_to_engine = msgpack.Decoder(ToEngine).decode
decode_to_gateway = msgpack.Decoder(ToGateway).decode
