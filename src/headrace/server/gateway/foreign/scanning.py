"""The little that a gateway reads of a request it passes on untouched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from headrace.errors import InvalidRequest

if TYPE_CHECKING:
    from headrace.types import Tokens

_MAX_QUOTED_CHARS = 200

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
