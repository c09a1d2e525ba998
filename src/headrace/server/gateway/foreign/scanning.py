"""The little that a gateway reads of a request it passes on untouched, and where that leads it.

The prompt is not tokenised: it is named by digests of its bytes in chunks (as they were sent, from
their start), so that requests with a common beginning can go to one replica, and its length in
tokens is guessed from its length in bytes.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from headrace.errors import InvalidRequest

if TYPE_CHECKING:
    from headrace.types import Tokens

CHUNK_BYTES = 256
MAX_CHUNKS = 256
"""Of one prompt; what is longer is the same to us behind that."""

CHUNK_TOKENS = 64
"""What a chunk counts for where tokens are counted: CHUNK_BYTES at the usual 4 bytes a token."""

_MAX_QUOTED_CHARS = 200
_PRIOR_BYTES_PER_TOKEN = 4.0
_WEIGHT = 0.05  # of one request in the moving average
_MIN_RATIO, _MAX_RATIO = 0.25, 64.0  # images and odd encodings must not bend it for long

_Limit = Annotated[int, Meta(ge=0, le=1 << 30)]


class RequestScan(Struct, frozen=True):
    """What is read of a body. Everything else is the replica's business."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: _Limit | None = None
    max_completion_tokens: _Limit | None = None
    cache_salt: str | None = None
    prompt_cache_key: str | None = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()

    @property
    def text(self) -> bytes:
        """The prompt, in the bytes of its JSON."""
        return bytes(self.messages) or bytes(self.prompt) or bytes(self.input)

    @property
    def output_limit(self) -> Tokens | None:
        """Tokens that the client asked for at most."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens


_decode = msgspec.json.Decoder(RequestScan).decode


def scan(body: bytes | bytearray) -> RequestScan:
    """Return what we read of ``body``. Raises InvalidRequest."""
    try:
        return _decode(body)
    except RecursionError:
        raise InvalidRequest("the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 at byte {error.start}") from None
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)[:_MAX_QUOTED_CHARS]) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"malformed JSON: {str(error)[:_MAX_QUOTED_CHARS]}") from None


def name_chunks(root: bytes, text: bytes) -> tuple[bytes, ...]:
    """Return the digests of the full chunks of ``text``, each chained to the one before."""
    digests: list[bytes] = []
    parent = root
    for end in range(CHUNK_BYTES, min(len(text), MAX_CHUNKS * CHUNK_BYTES) + 1, CHUNK_BYTES):
        parent = sha256(parent + text[end - CHUNK_BYTES : end]).digest()
        digests.append(parent)
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
