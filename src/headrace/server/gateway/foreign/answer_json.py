"""What is read of the JSON that foreign replicas answer with; all else passes unread."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from headrace.errors import ProtocolError


class _PromptDetails(Struct, frozen=True):
    cached_tokens: int | None = None


class UsageFields(Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Choice(Struct, frozen=True, gc=False):
    finish_reason: str | None = None


class AnswerFields(Struct, frozen=True):
    id: str | None = None
    choices: list[_Choice] = []
    usage: UsageFields | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(AnswerFields).decode


def decode_answer(data: bytes) -> AnswerFields:
    """Return what we read of a JSON object. Raises ProtocolError."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"its JSON is broken: {str(error)[:200]}") from None
