"""KV events in the bytes of several versions of vLLM and SGLang."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.router.foreign_blocks import AllCleared, BlocksRemoved, BlocksStored
from headrace.errors import ProtocolError
from headrace.server.gateway.foreign.kv_wire import read_batch

TOKENS = [5, 6, 7, 8]
STORED = BlocksStored(names=[11, 12], parent=10, tokens=TOKENS, block_size=2)
FIELDS = {
    "block_hashes": [11, 12],
    "parent_block_hash": 10,
    "token_ids": TOKENS,
    "block_size": 2,
    "lora_id": None,
}


def batch(*events: object, rank: object = None) -> bytes:
    return msgspec.msgpack.encode([12.5, list(events), rank])


@pytest.mark.parametrize(
    "event",
    [
        ["BlockStored", *FIELDS.values()],  # vLLM 0.9, SGLang
        ["BlockStored", *FIELDS.values(), "GPU"],
        ["BlockStored", *FIELDS.values(), "GPU", None, [None, None]],
        ["BlockStored", *FIELDS.values(), "GPU", None, None, None, None, None, "LOCAL", {"x": 1}],
        {"type": "BlockStored", **FIELDS},  # vLLM 0.32
        {**FIELDS, "medium": "GPU", "type": "BlockStored", "session_id": "s", "new": [1, {}]},
    ],
)
def test_stores_of_all_versions_are_one(event: object) -> None:
    assert read_batch(batch(event)).changes == [STORED]
    assert read_batch(msgspec.msgpack.encode([1, [event]])).changes == [STORED]
    as_map = {"ts": 1.5, "events": [event], "data_parallel_rank": 0}
    assert read_batch(msgspec.msgpack.encode(as_map)).changes == [STORED]


def test_names_may_be_bytes_and_large_numbers() -> None:
    event = {**FIELDS, "type": "BlockStored", "block_hashes": [b"x" * 32, 2**64 - 1]}
    event["parent_block_hash"] = -(2**63)
    (change,), _ = read_batch(batch(event))
    assert isinstance(change, BlocksStored)
    assert (list(change.names), change.parent) == ([b"x" * 32, 2**64 - 1], -(2**63))


def test_removals_and_clears_of_all_versions() -> None:
    changes, skipped = read_batch(
        batch(
            ["BlockRemoved", [1, b"b"]],
            ["BlockRemoved", [3], "GPU"],
            {"type": "BlockRemoved", "block_hashes": [4], "medium": None, "group_idx": 2},
            ["AllBlocksCleared"],
            {"type": "AllBlocksCleared"},
        )
    )
    assert skipped == 0
    assert changes == [
        BlocksRemoved([1, b"b"]),
        BlocksRemoved([3]),
        BlocksRemoved([4], 2),
        AllCleared(),
        AllCleared(),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_name": "adapter"},
        {"lora_id": 3},
        {"medium": "CPU"},
        {"extra_keys": [None, [["image", 0]]]},
        {"extra_keys": [["salt"], None]},  # not at the beginning of a prompt
        {"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 512},
        {"kv_cache_spec_kind": "mamba"},
        {"block_hashes": [], "block_size": 0},
        {"token_ids": TOKENS[:3]},
    ],
)
def test_blocks_that_no_plain_prompt_leads_to_are_skipped(fields: dict[str, object]) -> None:
    event = {**FIELDS, "type": "BlockStored", **fields}
    assert read_batch(batch(event, ["Unheard", 1], {"type": "Of"})) == ([], 3)
    assert read_batch(batch(["BlockRemoved", [1], "CPU_PINNED"])) == ([], 1)


def test_a_salt_belongs_to_the_first_block() -> None:
    first = {"parent_block_hash": None, "extra_keys": [["mine"], None]}
    (change,), _ = read_batch(batch({**FIELDS, "type": "BlockStored", **first}))
    assert isinstance(change, BlocksStored)
    assert change.salt == "mine"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"no msgpack",
        msgspec.msgpack.encode({"ts": 1}),
        batch(7),
        batch([]),
        batch([5, 6]),
        batch({"no": "type"}),
        batch(["BlockStored", [1]]),
        batch({"type": "BlockStored", **FIELDS, "token_ids": [-1, 2, 3, 4]}),
        batch({"type": "BlockStored", **FIELDS, "token_ids": [1 << 32, 2, 3, 4]}),
        batch({"type": "BlockStored", **FIELDS, "block_size": -2}),
        batch({"type": "BlockRemoved", "block_hashes": "all"}),
        b"\x93\x01\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
    ],
)
def test_what_is_malformed_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed KV events"):
        read_batch(payload)


@given(st.binary(max_size=64), st.integers(0, 60))
def test_no_bytes_do_more_harm_than_that(junk: bytes, at: int) -> None:
    good = batch({"type": "BlockStored", **FIELDS}, ["BlockRemoved", [3]])
    for payload in (junk, good[:at] + junk, good[:at] + junk + good[at:]):
        with suppress(ProtocolError):
            read_batch(payload)
