"""What is read of a request that passes through."""

from __future__ import annotations

import json

import pytest

from headrace.errors import InvalidRequest
from headrace.server.gateway.foreign.naming import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    TokenEstimate,
    name_chunks,
)
from headrace.server.gateway.foreign.scanning import scan

ROOT = b"r" * 32


def test_the_few_fields_are_read_and_others_let_be() -> None:
    body = json.dumps({"model": "m", "stream": True, "max_tokens": 5, "messages": [], "odd": {}})
    found = scan(body.encode())
    assert (found.model, found.stream, found.output_limit, found.text) == ("m", True, 5, b"[]")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"model":', b'{"model":1}', b'{"stream":"yes"}', b"[" * 100_000, b"\xff\xfe"],
)
def test_a_body_that_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        scan(body)


def test_prompts_share_the_names_of_their_common_beginning() -> None:
    common = b"a" * (3 * CHUNK_BYTES)
    left, right = name_chunks(ROOT, common + b"b" * 512), name_chunks(ROOT, common + b"c" * 512)
    assert left[:3] == right[:3]
    assert not set(left[3:]) & set(right[3:])


def test_other_tenants_share_no_names() -> None:
    text = b"a" * 1024
    assert not set(name_chunks(ROOT, text)) & set(name_chunks(b"s" * 32, text))


def test_names_are_of_whole_chunks_and_bounded() -> None:
    assert name_chunks(ROOT, b"a" * (CHUNK_BYTES - 1)) == ()
    assert len(name_chunks(ROOT, bytes(2 * MAX_CHUNKS * CHUNK_BYTES))) == MAX_CHUNKS


def test_the_length_of_a_prompt_is_learned() -> None:
    estimate = TokenEstimate()
    assert estimate.tokens(400) == 100
    for _ in range(200):
        estimate.learn(200, 100)
    assert abs(estimate.tokens(400) - 200) <= 1
    estimate.learn(10**9, 1)
    assert estimate.bytes_per_token < 6
