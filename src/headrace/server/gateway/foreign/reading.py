"""Bytes of a foreign replica to responses: llhttp, and the checks it leaves to us.

llhttp refuses bad chunks, two Content-Lengths, and Content-Length beside Transfer-Encoding.
Checked here: sizes while they grow, the coding of the body, interim responses (RFC 9110 section
15.2), and bytes that nobody asked for. A body without length or chunks ends with its connection.
"""

from __future__ import annotations

from typing import NamedTuple

import httptools

from headrace.errors import ProtocolError

MAX_HEAD_BYTES = 64 * 1024
"""Of a response's head, and of what stands between two pieces of a body (chunk extensions)."""

MAX_INTERIM = 8
"""Interim responses before the one that counts."""


class ResponseHead(NamedTuple):
    """Status and header fields; names in lower case, of repeated fields the last."""

    status: int
    headers: dict[bytes, bytes]

    @property
    def media_type(self) -> bytes:
        """Without parameters, in lower case."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


class ResponseReader:
    """Parses one connection. The ``on_`` methods are httptools' callbacks.

    After ``feed``: ``head`` is set once it was read, ``pieces`` holds the body's new bytes,
    ``ended`` says that the response is complete, ``reusable`` that another may follow. ``next``
    makes ready for the next one.
    """

    def __init__(self) -> None:
        self.head: ResponseHead | None = None
        self.pieces: list[bytes] = []
        self.ended = False
        self.reusable = False
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._num_interim = 0
        self._barren_bytes = 0  # fed since the last piece of a body

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body has neither a length nor chunks."""
        if self.head is None:
            return False
        fields = self.head.headers
        return b"content-length" not in fields and b"transfer-encoding" not in fields

    def feed(self, data: bytes) -> None:
        """Parse ``data``. Raises ProtocolError."""
        if self.ended:
            raise ProtocolError("it sent bytes after its answer")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            raise cause if isinstance(cause, ProtocolError) else error from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ProtocolError(f"its answer is not HTTP: {error}") from None
        if self.pieces or self.ended:
            self._barren_bytes = 0
            return
        self._barren_bytes += len(data)
        if self._barren_bytes > MAX_HEAD_BYTES:
            raise ProtocolError(f"{MAX_HEAD_BYTES} bytes of it and no answer among them")

    def next(self) -> None:
        """Forget the response that has ended."""
        self.head = None
        self.pieces = []
        self.ended = False
        self.reusable = False
        self._num_interim = 0

    def on_message_begin(self) -> None:
        if self.ended:
            raise ProtocolError("it sent a second answer")
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:  # else a trailer field
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status: int = self._parser.get_status_code()
        if status < 200:
            self._num_interim += 1
            if status == 101 or self._num_interim > MAX_INTERIM:
                raise ProtocolError(f"it answered with status {status}")
            return
        coding = self._headers.get(b"transfer-encoding", b"chunked").lower()
        if coding != b"chunked":
            raise ProtocolError(f"its transfer coding is {coding[:40]!r}, not chunked")
        if self._headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ProtocolError("its answer is compressed, which was not asked for")
        self.head = ResponseHead(status, self._headers)

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        if self.head is None:
            return  # an interim response
        self.ended = True
        # asked here, inside a callback: llhttp has no answer afterwards
        self.reusable = self._parser.should_keep_alive()
