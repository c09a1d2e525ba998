"""Server-sent events: bytes in, the data of whole events out (WHATWG HTML, section 9.2.6).

Only ``data`` matters to us: ``event``, ``id``, ``retry`` and comments are dropped. Lines end in
LF, CRLF or CR. How the bytes are cut into pieces makes no difference.
"""

from __future__ import annotations

MAX_PENDING_BYTES = 16 << 20  # a line or an event longer than this is no answer of a language model
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLong(ValueError):
    """The stream holds an event of over ``MAX_PENDING_BYTES``."""


class SseParser:
    """Cuts a byte stream into events. Owns what has arrived of the unfinished one."""

    def __init__(self) -> None:
        self._rest = b""  # an unfinished line
        self._data: list[bytes] = []  # the unfinished event's data lines
        self._pending = 0  # bytes in _data
        self._after_cr = False  # the last byte was CR: an LF now belongs to it
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes; return the data of each event that they complete."""
        if not piece:
            return []
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
            self._after_cr = False
            if not piece:
                return []
        self._after_cr = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) + self._pending > MAX_PENDING_BYTES:
            raise EventTooLong(f"an event of over {MAX_PENDING_BYTES} bytes")
        return self._events_of(lines)

    def _events_of(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        for raw in lines:
            line = raw
            if self._at_start:
                self._at_start = False
                line = raw.removeprefix(_BYTE_ORDER_MARK)
            if line:
                self._take_line(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._pending = 0
        return events

    def _take_line(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._pending += len(value)
