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
from headrace.messages import Beat, Load, Logprobs, SubmitRequest, Timing, TokenRow, Welcome
from headrace.server.links import ReplicaDescription, ReplicaProcess
from headrace.types import (
    BlockKey,
    EngineTiming,
    Output,
    ReplicaId,
    ReportLoad,
    Request,
    RequestId,
    TokenLogprobs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.types import Seconds, TokenId

_U32, _U64 = "I", "Q"
assert array(_U32).itemsize == 4
assert array(_U64).itemsize == 8


def pack_tokens(tokens: Iterable[TokenId]) -> bytes:
    """Return token ids as u32, little-endian."""
    return _pack(array(_U32, tokens))


def unpack_tokens(packed: bytes) -> tuple[TokenId, ...]:
    """Return the token ids of ``pack_tokens``."""
    return tuple(_unpack(_U32, packed, "tokens"))


def pack_keys(keys: Iterable[BlockKey]) -> bytes:
    """Return block keys as u64, little-endian."""
    return _pack(array(_U64, keys))


def unpack_keys(packed: bytes) -> tuple[BlockKey, ...]:
    """Return the block keys of ``pack_keys``."""
    return tuple(map(BlockKey, _unpack(_U64, packed, "block keys")))


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
        first_token_in=None if request.first_token_by is None else request.first_token_by - now,
        itl=request.itl,
        session=request.session,
        retention=request.retention,
        constraint=request.constraint,
        weight=request.weight,
        source=request.source,
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
        first_token_by=None if message.first_token_in is None else now + message.first_token_in,
        itl=message.itl,
        session=message.session,
        retention=message.retention,
        constraint=message.constraint,
        weight=message.weight,
        source=message.source,
    )


def row_message(output: Output, *, stream: int) -> TokenRow:
    """Return the row that carries all of ``output``."""
    logprobs = tuple(Logprobs(entry.token, entry.logprob, entry.top) for entry in output.logprobs)
    timing = None if output.timing is None else Timing(*output.timing)
    cached = output.cached_tokens or 0
    return TokenRow(stream, output.tokens, output.finish, cached, logprobs, output.reason, timing)


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
        timing=None if row.timing is None else EngineTiming(*msgspec.structs.astuple(row.timing)),
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


def beat_message(process: ReplicaProcess) -> Beat:
    """Return the message that carries ``process``."""
    return msgspec.convert(process, Beat, from_attributes=True)


def process_of(message: Beat) -> ReplicaProcess:
    """Return what a heartbeat tells of its process."""
    return ReplicaProcess(**msgspec.structs.asdict(message))


def _pack(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _unpack(kind: str, packed: bytes, what: str) -> array[int]:
    numbers = array(kind)
    if len(packed) % numbers.itemsize:
        raise ProtocolError(
            f"packed {what} of {len(packed)} bytes, not a multiple of {numbers.itemsize}"
        )
    numbers.frombytes(packed)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
