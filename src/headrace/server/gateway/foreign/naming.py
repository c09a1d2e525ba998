"""What a prompt that nobody tokenised is called, and how long it is thought to be.

It is named by digests of its bytes in chunks (as they were sent, from their start), so that
requests with a common beginning can go to one replica, and its length in tokens is guessed from
its length in bytes.

The digests are XXH3 (github.com/Cyan4973/xxHash), which is not cryptographic and takes a quarter of
the time: who finds two prompts of one name sends his own requests to the wrong replica. What keeps
tenants apart is a secret at the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xxhash import xxh3_128

if TYPE_CHECKING:
    from headrace.types import Tokens

CHUNK_BYTES = 512
MAX_CHUNKS = 256
"""Of one prompt; what is longer is the same to us behind that."""

CHUNK_TOKENS = 128
"""What a chunk counts for where tokens are counted: CHUNK_BYTES at the usual 4 bytes a token."""

_PRIOR_BYTES_PER_TOKEN = 4.0
_WEIGHT = 0.05  # of one request in the moving average
_MIN_RATIO, _MAX_RATIO = 0.25, 64.0  # images and odd encodings must not bend it for long


@dataclass(frozen=True, slots=True)
class Named:
    """A prompt's name, and its length as well as it is known."""

    root: bytes
    chain: tuple[bytes, ...]
    prompt_tokens: Tokens


def name_chunks(root: bytes, text: bytes) -> tuple[bytes, ...]:
    """Return a digest for each full chunk of ``text``: of ``root`` and all up to its end."""
    digests: list[bytes] = []
    state = xxh3_128(root)
    for end in range(CHUNK_BYTES, min(len(text), MAX_CHUNKS * CHUNK_BYTES) + 1, CHUNK_BYTES):
        state.update(text[end - CHUNK_BYTES : end])
        digests.append(state.digest())
    return tuple(digests)


class TokenEstimate:
    """How many tokens a prompt has, learned from what replicas say of others."""

    def __init__(self) -> None:
        self.bytes_per_token = _PRIOR_BYTES_PER_TOKEN

    def tokens(self, num_bytes: int) -> Tokens:
        """Guess, at least 1."""
        return max(1, round(num_bytes / self.bytes_per_token))

    def learn(self, num_bytes: int, prompt_tokens: Tokens) -> None:
        """A prompt of ``num_bytes`` had so many tokens."""
        if prompt_tokens > 0 and num_bytes > 0:
            ratio = min(max(num_bytes / prompt_tokens, _MIN_RATIO), _MAX_RATIO)
            self.bytes_per_token += _WEIGHT * (ratio - self.bytes_per_token)
