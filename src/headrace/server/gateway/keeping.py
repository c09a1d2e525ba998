"""What clients say of a prompt's next use: its conversation, and how long to keep its content.

``prompt_cache_key`` and ``prompt_cache_retention`` are OpenAI's (API reference, prompt caching),
``cache_control`` on a part of a message's content is Anthropic's (Messages API, prompt caching).
A cache_control keeps the whole prompt of its request, not only what stands before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import InvalidRequest
from headrace.server.gateway.api.requests import MAX_SESSION_CHARS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headrace.server.gateway.api.requests import GenerationFields, Message
    from headrace.types import Seconds

SESSION_FIELD = b"x-session-id"
IN_MEMORY = 600.0
"""Seconds of ``in_memory``; OpenAI names 5 to 10 minutes without use."""

_RETENTIONS = {"in_memory": IN_MEMORY, "in-memory": IN_MEMORY, "24h": 86_400.0}
_TTLS = {"5m": 300.0, "1h": 3600.0}
_DEFAULT_TTL = "5m"


class Keeping(NamedTuple):
    """``session`` is "" if none is named, ``retention`` None if nothing is asked."""

    session: str
    retention: Seconds | None


NOTHING_ASKED = Keeping("", None)


def keeping_of(
    fields: GenerationFields,
    headers: Mapping[bytes, bytes],
    messages: Sequence[Message] = (),
    *,
    longest: Seconds,
) -> Keeping:
    """Return what a request says, no longer than ``longest``. Raises InvalidRequest."""
    asked = [_TTLS[ttl] for ttl in _ttls(messages)]
    if fields.prompt_cache_retention is not None:
        asked.append(_RETENTIONS[fields.prompt_cache_retention])
    retention = min(max(asked), longest) if asked else None
    return Keeping(fields.prompt_cache_key or session_of(headers), retention)


def session_of(headers: Mapping[bytes, bytes]) -> str:
    """Return the session that a header names, "" if none. Raises InvalidRequest."""
    value = headers.get(SESSION_FIELD, b"")
    if len(value) > MAX_SESSION_CHARS:
        raise InvalidRequest(
            f"{SESSION_FIELD.decode()} has {len(value)} bytes; at most {MAX_SESSION_CHARS}"
        )
    return value.decode("latin-1")


def _ttls(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if message.content is None or isinstance(message.content, str):
            continue
        for part in message.content:
            if part.cache_control is not None:
                yield part.cache_control.ttl or _DEFAULT_TTL
