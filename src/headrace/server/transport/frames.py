"""Frames on a stream socket: framing without I/O, and one asyncio connection that uses it.

A frame is ``length (u32, little-endian) | version (u8) | payload``; ``length`` counts the payload
only and is at least 1. Nothing here knows what a payload means.

A connection never grows without bound: a frame longer than ``max_frame_bytes`` ends it before it
is read, and a peer that leaves ``max_buffer_bytes`` unread, or reads nothing for
``stall_seconds``, is disconnected.
"""

from __future__ import annotations

import asyncio
from struct import Struct as BinaryStruct
from typing import TYPE_CHECKING, Annotated, Protocol, cast

import msgspec
from msgspec import Meta

from headrace import messages
from headrace.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.types import Seconds

_HEAD = BinaryStruct("<IB")


class ConnectionLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of one connection between a gateway and an engine."""

    max_frame_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="longest frame, in bytes")
    ] = 16 << 20
    max_buffer_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 32, description="bytes waiting for a slow peer")
    ] = 64 << 20
    stall_seconds: Annotated[
        float, Meta(gt=0, le=600, description="a peer that reads nothing for this long is cut off")
    ] = 5.0
    greeting_seconds: Annotated[
        float, Meta(gt=0, le=600, description="time for a peer's first frame")
    ] = 5.0
    beat_seconds: Annotated[
        float, Meta(gt=0, le=60, description="between two heartbeats of an engine")
    ] = 0.5
    connect_seconds: Annotated[float, Meta(gt=0, le=600, description="time to connect")] = 1.0
    retry_min_seconds: Annotated[
        float, Meta(gt=0, le=60, description="pause after a first failed connect")
    ] = 0.02
    retry_max_seconds: Annotated[
        float, Meta(gt=0, le=60, description="pause after many failed connects")
    ] = 0.1


def pack(payload: bytes) -> bytes:
    """Return the frame that carries ``payload``."""
    return _HEAD.pack(len(payload), messages.VERSION) + payload


class FrameReader:
    """Cuts a byte stream into payloads. Holds at most one incomplete frame."""

    def __init__(self, *, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    @property
    def num_buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the payloads that ``data`` completes; consume the iterator before feeding more.

        Raises ProtocolError at the first head that no peer of ours writes; the payloads before
        it have been yielded then, and the stream is beyond repair.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEAD.size:
                end = start + _HEAD.size + self._check_head(start)
                if len(buffer) < end:
                    break
                payload = bytes(memoryview(buffer)[start + _HEAD.size : end])
                start = end
                yield payload
        finally:
            del buffer[:start]

    def _check_head(self, start: int) -> int:
        length, version = _HEAD.unpack_from(self._buffer, start)
        if version != messages.VERSION:
            raise ProtocolError(f"frame of version {version}; this side speaks {messages.VERSION}")
        if not 1 <= length <= self._max_frame_bytes:
            raise ProtocolError(
                f"frame of {length} bytes; 1 to {self._max_frame_bytes} are allowed"
            )
        return int(length)


class FramePeer(Protocol):
    """Whoever owns a connection. Called on the loop."""

    def opened(self, connection: FrameConnection) -> None:
        """The connection stands."""
        ...

    def received(self, connection: FrameConnection, payload: bytes) -> None:
        """Take one payload. ProtocolError or msgspec's errors end the connection."""
        ...

    def closed(self, connection: FrameConnection, reason: str) -> None:
        """The connection is gone. Called once, and only after ``opened``."""
        ...


class FrameConnection(asyncio.Protocol):
    """One end of a framed connection."""

    def __init__(self, peer: FramePeer, limits: ConnectionLimits) -> None:
        self._peer = peer
        self._limits = limits
        self._reader = FrameReader(max_frame_bytes=limits.max_frame_bytes)
        self._transport: asyncio.Transport | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._reason = ""

    @property
    def is_congested(self) -> bool:
        """Whether the peer reads more slowly than we write: leave out what can wait."""
        return self._stall is not None

    def send(self, message: msgspec.Struct) -> None:
        """Write one message, or end the connection if too much waits already."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(pack(messages.encode(message)))
        if transport.get_write_buffer_size() > self._limits.max_buffer_bytes:
            self.abort(f"the peer left {self._limits.max_buffer_bytes} bytes unread")

    def close(self, reason: str) -> None:
        """End the connection after what was sent, within the stall limit."""
        if self._transport is not None and not self._transport.is_closing():
            self._reason = self._reason or reason
            self._watch_stall()
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._reason = self._reason or reason
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass
        self._peer.opened(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            for payload in self._reader.feed(data):
                if self._reason:
                    return
                self._peer.received(self, payload)
        except (ProtocolError, msgspec.MsgspecError, RecursionError) as error:
            self.abort(f"protocol error: {error}")

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._watch_stall()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.resume_writing()
        self._transport = None
        self._peer.closed(self, self._reason or (str(exc) if exc else "the peer closed"))

    def _watch_stall(self) -> None:
        if self._stall is None:
            seconds: Seconds = self._limits.stall_seconds
            reason = f"the peer read nothing for {seconds:g} s"
            loop = asyncio.get_running_loop()
            self._stall = loop.call_later(seconds, self.abort, reason)
