"""The bytes of KV cache events: msgpack, as vLLM and SGLang publish them.

A batch is ``[ts, events, rank]``, or the same as a map. An event is a map with ``type`` (vLLM
0.32), or an array that begins with it (older vLLM, SGLang); fields were added at its end from
version to version, and more may be. Names of blocks are numbers or bytes. An event of a kind that
is not known, of an adapter, of prompts with images, of memory below the device's, and of a cache
that does not keep all of a prompt (sliding windows) is skipped: it says nothing that we can name.
Sources: vllm/distributed/kv_events.py, sglang/srt/disaggregation/kv_events.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from headrace.core.router.foreign_blocks import (
    AllCleared,
    BlocksRemoved,
    BlocksStored,
    ForeignChange,
)
from headrace.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

_WHOLE_CACHES = (None, "full_attention", "mla_attention", "sink_full_attention")
"""Kinds of caches (vllm/v1/kv_cache_interface.py) that keep every block of a prompt."""

_MEDIA = (None, "GPU")
"""Where blocks are: what was offloaded to host memory or disk is not followed."""

_KNOWN = ("BlockStored", "BlockRemoved", "AllBlocksCleared")
_MAX_QUOTED = 200

_Token = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_Size = Annotated[int, Meta(ge=0, le=1 << 20)]


class _BatchArray(Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]


class _BatchMap(Struct):
    ts: float
    events: list[msgspec.Raw]


class _ArrayKind(Struct, array_like=True):
    type: str


class _MapKind(Struct):
    type: str


class _Stored(Struct):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[_Token]
    block_size: _Size
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[object] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class _Removed(Struct):
    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(Struct):
    pass


class _StoredMap(_Stored, tag="BlockStored"):
    pass


class _RemovedMap(_Removed, tag="BlockRemoved"):
    pass


class _ClearedMap(_Cleared, tag="AllBlocksCleared"):
    pass


class _StoredArray(_Stored, tag="BlockStored", array_like=True):
    pass


class _RemovedArray(_Removed, tag="BlockRemoved", array_like=True):
    pass


class _ClearedArray(_Cleared, tag="AllBlocksCleared", array_like=True):
    pass


_decode_batch_array = msgspec.msgpack.Decoder(_BatchArray).decode
_decode_batch_map = msgspec.msgpack.Decoder(_BatchMap).decode
_decode_array_kind = msgspec.msgpack.Decoder(_ArrayKind).decode
_decode_map_kind = msgspec.msgpack.Decoder(_MapKind).decode
_decode_map = msgspec.msgpack.Decoder(_StoredMap | _RemovedMap | _ClearedMap).decode
_decode_array = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray).decode


class KvBatch(NamedTuple):
    """What a batch says, and how many of its events are none of ours."""

    changes: Sequence[ForeignChange]
    num_skipped: int


def read_batch(payload: bytes) -> KvBatch:
    """Decode a batch. Raises ProtocolError: then nothing of it is to be believed."""
    try:
        decode = _decode_batch_array if _is_array(payload) else _decode_batch_map
        changes = [_change(event) for event in decode(payload).events]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed KV events: {str(error)[:_MAX_QUOTED]}") from None
    found = [change for change in changes if change is not None]
    return KvBatch(found, len(changes) - len(found))


def _change(raw: msgspec.Raw) -> ForeignChange | None:
    is_array = _is_array(raw)
    kind = _decode_array_kind(raw).type if is_array else _decode_map_kind(raw).type
    if kind not in _KNOWN:
        return None
    event = _decode_array(raw) if is_array else _decode_map(raw)
    match event:
        case _Stored():
            return _stored(event)
        case _Removed() if event.medium not in _MEDIA:
            return None
        case _Removed():
            return BlocksRemoved(event.block_hashes, event.group_idx)
        case _:
            return AllCleared()


def _stored(event: _Stored) -> BlocksStored | None:
    """Return the event in our words, None for blocks that no plain prompt of ours leads to."""
    if event.lora_id is not None or event.lora_name is not None:
        return None
    if event.kv_cache_spec_kind not in _WHOLE_CACHES or event.kv_cache_spec_sliding_window:
        return None
    if event.medium not in _MEDIA or not event.block_size:
        return None
    if len(event.token_ids) != len(event.block_hashes) * event.block_size:
        return None
    first, *others = event.extra_keys or [None]
    salt = ""
    if event.parent_block_hash is None and first and len(first) == 1 and isinstance(first[0], str):
        salt, first = first[0], None
    if first or any(others):
        return None
    return BlocksStored(
        names=event.block_hashes,
        parent=event.parent_block_hash,
        tokens=event.token_ids,
        block_size=event.block_size,
        salt=salt,
        group=event.group_idx,
    )


def _is_array(raw: msgspec.Raw | bytes) -> bool:
    """Whether it is an array: by its first byte (msgpack's specification)."""
    first = bytes(memoryview(raw)[:1])
    return b"\x90" <= first <= b"\x9f" or first in (b"\xdc", b"\xdd")
