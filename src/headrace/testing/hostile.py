"""Requests that are none: smuggling, floods, and what other protocols say. For any HTTP listener.

Each must be answered by one error and the end of the connection (RFC 9112 sections 2.2, 3.2, 5, 6,
7 and 11.2), whatever comes behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Hostile(NamedTuple):
    """What is sent, and the status that it must get."""

    data: bytes
    status: int


_POST = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
_BODY = b'{"prompt":"hi"}'

_REQUESTS: Mapping[str, tuple[bytes, int]] = {
    "content-length-and-chunked": (
        _POST + b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n\r\n" + _BODY,
        400,
    ),
    "two-content-lengths": (
        _POST + b"Content-Length: 15\r\nContent-Length: 15\r\n\r\n" + _BODY,
        400,
    ),
    "two-different-content-lengths": (
        _POST + b"Content-Length: 15\r\nContent-Length: 5\r\n\r\n" + _BODY,
        400,
    ),
    "list-of-content-lengths": (_POST + b"Content-Length: 15, 15\r\n\r\n" + _BODY, 400),
    "signed-content-length": (_POST + b"Content-Length: +15\r\n\r\n" + _BODY, 400),
    "negative-content-length": (_POST + b"Content-Length: -1\r\n\r\n" + _BODY, 400),
    "empty-content-length": (_POST + b"Content-Length:\r\n\r\n" + _BODY, 400),
    "huge-content-length": (_POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
    "hexadecimal-content-length": (_POST + b"Content-Length: 0xf\r\n\r\n" + _BODY, 400),
    "two-transfer-encodings": (
        _POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "identity-transfer-encoding": (_POST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "gzip-transfer-encoding": (_POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "unknown-transfer-encoding": (_POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "chunked-in-http-1.0": (
        b"POST /tokenize HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "bad-chunk-size": (_POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "chunk-size-overflow": (
        _POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        400,
    ),
    "chunk-with-bare-lf": (_POST + b"Transfer-Encoding: chunked\r\n\r\n2\nab\n0\n\n", 400),
    "bare-lf": (b"GET /live HTTP/1.1\nHost: a\n\n", 400),
    "bare-cr-in-value": (b"GET /live HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    "nul-in-value": (b"GET /live HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
    "obsolete-folding": (b"GET /live HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    "space-before-colon": (b"GET /live HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "empty-field-name": (b"GET /live HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400),
    "no-host": (b"GET /live HTTP/1.1\r\n\r\n", 400),
    "two-hosts": (b"GET /live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "empty-host": (b"GET /live HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "host-with-query": (b"GET /live HTTP/1.1\r\nHost: a/?\r\n\r\n", 400),
    "host-with-userinfo": (b"GET /live HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "host-with-fragment": (b"GET /live HTTP/1.1\r\nHost: a#b\r\n\r\n", 400),
    "absolute-target": (b"GET http://b/live HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "connect": (b"CONNECT b:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "unknown-method": (b"FOO /live HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no-version": (b"GET /live\r\n\r\n", 400),
    "http-0.9-with-host": (b"GET /live\r\nHost: a\r\n\r\n", 400),
    "http-1.2": (b"GET /live HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    "http-2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "raw-bytes-in-target": (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "tls-hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "two-authorizations": (
        b"GET /live HTTP/1.1\r\nHost: a\r\nAuthorization: b\r\nAuthorization: c\r\n\r\n",
        400,
    ),
    "large-field": (b"GET /live HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
    "endless-field": (b"GET /live HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2_000_000, 431),
    "endless-target": (b"GET /" + b"x" * 2_000_000, 431),
    "endless-field-name": (b"GET /live HTTP/1.1\r\nHost: a\r\n" + b"x" * 2_000_000, 431),
    "many-fields": (b"GET /live HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", 431),
    "many-trailers": (
        _POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        431,
    ),
    "large-body": (_POST + b"Content-Length: 100000000\r\n\r\n" + b"x" * 1_000_000, 413),
    "large-chunked-body": (
        _POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n" * 200,
        400,
    ),
    "gzip-body": (
        _POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
        415,
    ),
}


def hostile_requests(*, host: str, get: str, post: str) -> dict[str, Hostile]:
    """Return all of them by name, for a listener called ``host`` with a GET and a POST route."""
    return {
        name: Hostile(
            data.replace(b"Host: a\r\n", b"Host: %s\r\n" % host.encode())
            .replace(b"/live", get.encode())
            .replace(b"/tokenize", post.encode()),
            status,
        )
        for name, (data, status) in _REQUESTS.items()
    }
