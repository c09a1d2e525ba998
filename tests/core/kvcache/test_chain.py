"""Block digests."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.kvcache.chain import chain_root, extend, num_common, pack, prompt_chain

ROOT = chain_root(salt=b"tenant", model_identity="model", block_size=4)
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def test_a_digest_is_sha256_over_the_parent_and_little_endian_tokens():
    expected = hashlib.sha256(ROOT + bytes([1, 0, 0, 0, 0, 2, 0, 0])).digest()
    assert extend(ROOT, [1, 512]) == expected


def test_the_root_depends_on_salt_model_and_block_size():
    roots = {
        chain_root(salt=salt, model_identity=model, block_size=size)
        for salt in (b"", b"a", b"ab")
        for model in ("", "a", "ba")
        for size in (16, 32)
    }
    assert len(roots) == 18


def test_salt_and_model_cannot_be_shifted_into_each_other():
    left = chain_root(salt=b"ab", model_identity="c", block_size=4)
    right = chain_root(salt=b"a", model_identity="bc", block_size=4)
    assert left != right


@given(TOKENS, st.integers(1, 9))
def test_a_prompt_chain_extends_block_by_block_and_leaves_the_rest_out(
    prompt: list[int], block_size: int
):
    digest, expected = ROOT, []
    for end in range(block_size, len(prompt) + 1, block_size):
        digest = extend(digest, prompt[end - block_size : end])
        expected.append(digest)
    assert prompt_chain(ROOT, prompt, block_size) == tuple(expected)


@given(TOKENS, TOKENS, TOKENS)
def test_num_common_counts_whole_tokens(prefix: list[int], left: list[int], right: list[int]):
    left, right = prefix + left, prefix + right
    expected = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        expected += 1
    assert num_common(pack(left), pack(right)) == expected
