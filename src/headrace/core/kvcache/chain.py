"""Block digests: what a full block holds, named by every token up to its end.

A digest is SHA-256 over the digest of the block before and this block's tokens as little-endian
32-bit numbers; the first block's parent is the root, which binds the chain to a tenant's salt, a
model and a block size. Equal digests mean equal keys and values, whoever computed them: digests
are made by gateways and engines only, never taken from a client.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import TokenId, Tokens

TOKEN_BYTES = 4


def chain_root(*, salt: bytes, model_identity: str, block_size: Tokens) -> bytes:
    """Return what the first block of a prompt is chained to.

    ``salt`` keeps tenants apart: 0 bytes for content that anyone may share.
    """
    identity = model_identity.encode()
    lengths = struct.pack("<III", len(salt), len(identity), block_size)
    return sha256(b"headrace.chain.1" + lengths + salt + identity).digest()


def pack(tokens: Sequence[TokenId]) -> bytes:
    """Return tokens as little-endian unsigned 32-bit numbers."""
    return struct.pack(f"<{len(tokens)}I", *tokens)


def extend(parent: bytes, tokens: Sequence[TokenId]) -> bytes:
    """Return the digest of the block that holds ``tokens`` after ``parent``."""
    return sha256(parent + pack(tokens)).digest()


def prompt_chain(root: bytes, prompt: Sequence[TokenId], block_size: Tokens) -> tuple[bytes, ...]:
    """Return the digests of the full blocks of a prompt."""
    packed = pack(prompt)
    step = block_size * TOKEN_BYTES
    digests: list[bytes] = []
    parent = root
    for end in range(step, len(packed) + 1, step):
        parent = sha256(parent + packed[end - step : end]).digest()
        digests.append(parent)
    return tuple(digests)


def num_common(left: bytes, right: bytes) -> Tokens:
    """Return how many packed tokens two byte strings have in common from their beginning."""
    length = min(len(left), len(right))
    difference = int.from_bytes(left[:length], "little") ^ int.from_bytes(right[:length], "little")
    if not difference:
        return length // TOKEN_BYTES
    lowest_bit = (difference & -difference).bit_length() - 1
    return lowest_bit // (8 * TOKEN_BYTES)
