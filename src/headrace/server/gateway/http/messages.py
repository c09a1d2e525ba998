"""Requests as parsed and responses before they are bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from headrace.server.keys import ANYBODY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.errors import RequestError
    from headrace.server.keys import Principal

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
_MAX_MESSAGE_CHARS = 400  # of an error; validation quotes at most 200 characters of input

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


class RequestHead(NamedTuple):
    """Request line and header fields, checked."""

    method: str
    path: str  # the target up to "?", exactly as sent
    headers: Mapping[bytes, bytes]  # names in lower case; repeated fields joined by ", "
    keep_alive: bool
    http10: bool
    query: str = ""  # the target after "?", exactly as sent


class HttpRequest(NamedTuple):
    """A whole request."""

    head: RequestHead
    body: bytearray


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True, kw_only=True)
class ResponseContext:
    """What every head of one request's answer carries, and what is known of the request."""

    keep_alive: bool = True
    http10: bool = False
    head_only: bool = False  # the method was HEAD: no body bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    request_id: str = ""  # ours: new and unique
    client_request_id: str = ""  # what the client calls it, if it does
    arrived_at: float = 0.0  # its last byte, on the gateway's clock
    principal: Principal = ANYBODY  # who asks


def error_json(error: RequestError) -> bytes:
    """Return OpenAI's error body."""
    message = error.message
    if len(message) > _MAX_MESSAGE_CHARS:
        message = message[: _MAX_MESSAGE_CHARS - 1] + "\u2026"
    fields = {
        "message": message,
        "type": error.kind,
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": fields})


def error_response(error: RequestError) -> Response:
    """Return the response to a request that failed with ``error``."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if error.retryable or error.retry_after is not None:
        headers = ((b"retry-after", b"%d" % max(1, ceil(error.retry_after or 1.0))),)
    elif error.status >= 400:
        headers = ((b"x-should-retry", b"false"),)
    return Response(error.status, error_json(error), JSON, headers)


def encode_response(response: Response, context: ResponseContext) -> bytes:
    """Return head and body as bytes."""
    parts = _head(response.status, response.content_type, response.headers, context)
    parts.append(b"content-length: %d\r\n\r\n" % len(response.body))
    if not context.head_only:
        parts.append(response.body)
    return b"".join(parts)


def encode_stream_head(content_type: bytes, context: ResponseContext) -> bytes:
    """Return the head of an answer of unknown length: chunked, or up to the close in HTTP/1.0."""
    parts = _head(200, content_type, ((b"cache-control", b"no-cache"),), context)
    parts.append(b"\r\n" if context.http10 else b"transfer-encoding: chunked\r\n\r\n")
    return b"".join(parts)


def _head(
    status: int,
    content_type: bytes,
    headers: tuple[tuple[bytes, bytes], ...],
    context: ResponseContext,
) -> list[bytes]:
    parts = [_STATUS_LINES[status], b"content-type: ", content_type, b"\r\n"]
    for name, value in (*headers, *context.headers):
        parts += (name, b": ", value, b"\r\n")
    if not context.keep_alive:
        parts.append(b"connection: close\r\n")
    return parts
