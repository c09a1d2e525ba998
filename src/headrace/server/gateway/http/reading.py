"""Bytes to requests: llhttp in its strict mode, and the checks it leaves to us.

llhttp refuses bare LF, obsolete folding, two Content-Lengths, Content-Length beside
Transfer-Encoding, bad chunks and odd request lines. Checked here: sizes and counts while they
grow, the version, Host (RFC 9112 section 3.2), the request target, Transfer-Encoding in HTTP/1.0,
repeated fields that must be single, and content codings. A request that fails is put in the queue
as its error, behind those that came before it; nothing after it is read.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING

import httptools

from headrace.errors import (
    HeadersTooLarge,
    InvalidRequest,
    PayloadTooLarge,
    RequestError,
    UnsupportedMediaType,
)
from headrace.server.gateway.http.messages import HttpRequest, RequestHead

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.server.gateway.http.limits import HttpLimits

_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_TARGET = re.compile(rb"/[!-~]*")  # origin form; no absolute form: we are no proxy
_SINGLE = frozenset(
    (b"host", b"authorization", b"x-api-key", b"content-type", b"content-encoding", b"expect")
)
_FIELD_OVERHEAD_BYTES = 4  # ": " and CRLF
_REMEMBERED = 64  # targets and hosts, of those seen last


class Phase(Enum):
    """What the next byte belongs to."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ENDED = auto()  # after a request that closes the connection
    FAILED = auto()  # after an error


class RequestReader:
    """Parses one connection. ``ready`` holds what was read, in order.

    ``refuse`` sees each head before its body is read and may return an error instead.
    The ``on_`` methods are httptools' callbacks.
    """

    def __init__(
        self, limits: HttpLimits, refuse: Callable[[RequestHead], RequestError | None]
    ) -> None:
        self.ready: deque[HttpRequest | RequestError] = deque()
        self.phase = Phase.IDLE
        self.body = bytearray()
        self._limits = limits
        self._refuse = refuse
        self._parser = httptools.HttpRequestParser(self)
        self._head: RequestHead | None = None
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._count = _HeadCount()

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for "100 Continue" before it sends the body."""
        head = self._head
        if head is None or self.phase is not Phase.BODY or self.body or head.http10:
            return False
        return head.headers.get(b"expect", b"").lower() == b"100-continue"

    def feed(self, data: bytes) -> None:
        """Parse ``data``; read ``phase`` and ``ready`` afterwards."""
        limit = 2 * self._limits.max_head_bytes
        if len(data) <= limit or self.phase is Phase.BODY:
            self._feed(data)
            return
        for start in range(0, len(data), limit):  # so that an endless field is seen in time
            self._feed(data[start : start + limit])

    def _feed(self, data: bytes) -> None:
        before = self.phase
        if before in (Phase.ENDED, Phase.FAILED):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.phase = Phase.ENDED  # the request itself is in `ready` and closes the connection
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, RequestError):
                raise
            self._fail(cause)
        except httptools.HttpParserError as error:
            if self.phase is not Phase.ENDED:  # bytes after a request that closes: ignored
                self._fail(InvalidRequest(f"malformed HTTP: {error}"))
        if self.phase is before is Phase.HEAD:  # fields are counted once whole; this sees one grow
            self._count.raw_bytes += len(data)
            if self._count.raw_bytes > 2 * self._limits.max_head_bytes:
                self._fail(self._too_large())

    def on_message_begin(self) -> None:
        self.phase = Phase.HEAD
        self.body = bytearray()
        self._head = None
        self._target = b""
        self._headers = {}
        self._count = _HeadCount()
        if len(self.ready) >= self._limits.max_pipelined:
            raise InvalidRequest("too many pipelined requests; wait for answers")

    def on_url(self, target: bytes) -> None:
        self._target += target
        self._count.num_bytes += len(target)
        if self._count.num_bytes > self._limits.max_head_bytes:
            raise self._too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        count, limits = self._count, self._limits
        count.num_bytes += len(name) + len(value) + _FIELD_OVERHEAD_BYTES
        count.num_fields += 1
        if count.num_bytes > limits.max_head_bytes or count.num_fields > limits.max_header_fields:
            raise self._too_large()
        if self._head is not None:
            return  # a trailer field: counted and dropped
        name = name.lower()
        if name not in self._headers:
            self._headers[name] = value
        elif name in _SINGLE:
            raise InvalidRequest(f"header field given twice: {name.decode('latin-1')}")
        else:
            self._headers[name] += b", " + value

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise InvalidRequest("the request line must end in HTTP/1.1 or HTTP/1.0")
        http10, method = version == "1.0", parser.get_method()
        head = RequestHead(
            method=method.decode("ascii"),
            path=_path(self._target, method),
            headers=headers,
            # asked here, inside a callback: llhttp has no answer afterwards
            keep_alive=parser.should_keep_alive() and not http10 and not parser.should_upgrade(),
            http10=http10,
            query=self._target.partition(b"?")[2].decode("ascii"),
        )
        _check_host(headers, http10=http10)
        error = self._check_body(headers, http10=http10) or self._refuse(head)
        if error is not None:
            raise error
        self._head = head
        self.phase = Phase.BODY

    def on_body(self, data: bytes) -> None:
        self.body += data
        if len(self.body) > self._limits.max_body_bytes:
            raise self._too_much()

    def on_message_complete(self) -> None:
        head = self._head
        assert head is not None
        self.ready.append(HttpRequest(head, self.body))
        self.phase = Phase.IDLE if head.keep_alive else Phase.ENDED
        self._head = None

    def _fail(self, error: RequestError) -> None:
        self.phase = Phase.FAILED
        self.body = bytearray()
        self.ready.append(error)

    def _check_body(self, headers: dict[bytes, bytes], *, http10: bool) -> RequestError | None:
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (http10 or coding.lower() != b"chunked"):
            return InvalidRequest("Transfer-Encoding may only be chunked, and only in HTTP/1.1")
        if int(headers.get(b"content-length", b"0")) > self._limits.max_body_bytes:
            return self._too_much()
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return UnsupportedMediaType("content codings are not accepted; send plain JSON")
        return None

    def _too_large(self) -> HeadersTooLarge:
        limits = self._limits
        return HeadersTooLarge(
            f"request head over {limits.max_head_bytes} bytes or {limits.max_header_fields} fields"
        )

    def _too_much(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"request body over {self._limits.max_body_bytes} bytes")


class _HeadCount:
    """How large the head being read is, by its fields and by the bytes fed."""

    __slots__ = ("num_bytes", "num_fields", "raw_bytes")

    def __init__(self) -> None:
        self.num_bytes = 0
        self.num_fields = 0
        self.raw_bytes = 0


@lru_cache(maxsize=_REMEMBERED)
def _path(target: bytes, method: bytes) -> str:
    if target == b"*" and method == b"OPTIONS":
        return "*"
    if _TARGET.fullmatch(target) is None:
        raise InvalidRequest("the request target must be a path, like /v1/models")
    return target.split(b"?", 1)[0].decode("ascii")


@lru_cache(maxsize=_REMEMBERED)
def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None


def _check_host(headers: dict[bytes, bytes], *, http10: bool) -> None:
    host = headers.get(b"host")
    if host is None:
        if not http10:
            raise InvalidRequest("the Host header field is missing")
    elif not _is_host(host):
        raise InvalidRequest("the Host header field is not a host and port")
