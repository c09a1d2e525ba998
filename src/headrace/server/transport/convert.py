"""From values of the engine and the gateway to messages, and back.

What arrives from a peer has the types that messages.py states; what msgspec cannot state
(packed lengths, columns of equal length) is checked here and raises ProtocolError.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING

import msgspec

from headrace.errors import ProtocolError
from headrace.messages import Load, Logprobs, SubmitRequest, TokenRow, Welcome
from headrace.server.links import ReplicaDescription
from headrace.types import Output, ReplicaId, ReportLoad, Request, RequestId, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.types import Seconds, TokenId

_U32 = "I"
_U32_BYTES = 4
assert array(_U32).itemsize == _U32_BYTES


def pack_tokens(tokens: Iterable[TokenId]) -> bytes:
    """Return token ids as u32, little-endian."""
    packed = array(_U32, tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_tokens(packed: bytes) -> tuple[TokenId, ...]:
    """Return the token ids of ``pack_tokens``."""
    if len(packed) % _U32_BYTES:
        raise ProtocolError(f"packed tokens of {len(packed)} bytes, not a multiple of {_U32_BYTES}")
    tokens = array(_U32)
    tokens.frombytes(packed)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tuple(tokens)


def submit_message(request: Request, *, stream: int, now: Seconds) -> SubmitRequest:
    """Return the message that carries ``request`` as ``stream``."""
    return SubmitRequest(
        stream=stream,
        request_id=request.id,
        prompt=pack_tokens(request.prompt),
        max_tokens=request.max_tokens,
        min_tokens=request.min_tokens,
        stop_token_ids=request.stop_token_ids,
        sampling=request.sampling,
        chain=request.chain,
        chain_root=request.chain_root,
        num_prior=request.num_prior,
        time_left=None if request.deadline is None else request.deadline - now,
        tenant=request.tenant,
        priority=request.priority,
    )


def request_of(message: SubmitRequest, *, now: Seconds) -> Request:
    """Return the request of a message that arrived at ``now``."""
    return Request(
        id=RequestId(message.request_id),
        prompt=unpack_tokens(message.prompt),
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        stop_token_ids=message.stop_token_ids,
        sampling=message.sampling,
        chain=message.chain,
        chain_root=message.chain_root,
        num_prior=message.num_prior,
        deadline=None if message.time_left is None else now + message.time_left,
        tenant=message.tenant,
        priority=message.priority,
    )


def row_message(output: Output, *, stream: int) -> TokenRow:
    """Return the row that carries all of ``output``."""
    logprobs = tuple(Logprobs(entry.token, entry.logprob, entry.top) for entry in output.logprobs)
    return TokenRow(
        stream, output.tokens, output.finish, output.cached_tokens, logprobs, output.reason
    )


def output_of(row: TokenRow, *, request_id: RequestId) -> Output:
    """Return the output of a row."""
    return Output(
        request_id=request_id,
        tokens=row.tokens,
        finish=row.finish,
        cached_tokens=row.cached_tokens,
        logprobs=tuple(
            TokenLogprobs(entry.token, entry.logprob, entry.top) for entry in row.logprobs
        ),
        reason=row.reason,
    )


def welcome_message(description: ReplicaDescription) -> Welcome:
    """Return the message that carries ``description``."""
    return msgspec.convert(description, Welcome, from_attributes=True)


def description_of(message: Welcome) -> ReplicaDescription:
    """Return the description of a message."""
    fields = msgspec.structs.asdict(message)
    return ReplicaDescription(**{**fields, "replica": ReplicaId(message.replica)})


def load_message(report: ReportLoad) -> Load:
    """Return the message that carries ``report``."""
    return msgspec.convert(report, Load, from_attributes=True)


def report_of(message: Load) -> ReportLoad:
    """Return the report of a message."""
    return ReportLoad(**msgspec.structs.asdict(message))
