"""ZeroMQ sockets to a server that publishes KV events: the stream, and what was missed of it.

Batches are published on PUB as frames (topic, number, payload). Missed ones are asked for at a
ROUTER by the number to begin with; it answers with those that it still has, and a number -1 at the
end. Numbers are 8 bytes, big-endian. Needs ``pyzmq`` (extra ``zmq``), which is imported when it is
used. Source: ZmqEventPublisher in vllm/distributed/kv_events.py.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import zmq.asyncio

    from headrace.types import Seconds

REPLAY_PATIENCE: Seconds = 5.0
"""For each batch that was asked for: vLLM looks for such requests every 0.1 s, and between steps
that publish."""

_END = b"\xff" * 8
_NUMBER_BYTES = 8
_MAX_MESSAGE_BYTES = 64 << 20  # of a batch; longer ones are not taken, and their sender is cut off
_MAX_WAITING = 10_000  # batches; what does not fit is lost, which is noticed by the next number
_BEAT_MS, _SILENCE_MS = 5_000, 15_000  # a connection that is dead without a word


class RawBatch(NamedTuple):
    """``number`` is None for frames that are none of a publisher's."""

    number: int | None
    payload: bytes


def check_installed() -> None:
    """Raise MissingExtra unless there is ZeroMQ."""
    if find_spec("zmq") is None:
        raise MissingExtra("kv-events= needs ZeroMQ: pip install 'headrace[zmq]'")


class KvSocket:
    """One server's stream. ``replay`` is where missed batches are asked for, "": nowhere.

    Raises OSError when an address is none.
    """

    def __init__(self, endpoint: str, replay: str) -> None:
        self._endpoint = endpoint
        self._replay = replay
        self._context: zmq.asyncio.Context | None = None
        self._stream: zmq.asyncio.Socket | None = None

    def open(self) -> None:
        """Connect, now and again whenever the connection is lost."""
        import zmq
        import zmq.asyncio

        self._context = zmq.asyncio.Context()
        self._stream = self._connect(self._context, zmq.SUB, self._endpoint)
        self._stream.setsockopt(zmq.SUBSCRIBE, b"")

    async def next(self) -> RawBatch:
        """Wait for the next batch of the stream."""
        assert self._stream is not None
        return _batch(await self._stream.recv_multipart())

    async def replay(self, first: int) -> AsyncGenerator[RawBatch]:
        """Ask for the batches from ``first`` on. Raises TimeoutError when no more come."""
        import zmq

        if not self._replay or self._context is None:
            return
        socket = self._connect(self._context, zmq.DEALER, self._replay)
        try:
            await socket.send_multipart((b"", first.to_bytes(_NUMBER_BYTES, "big")))
            while True:
                async with asyncio.timeout(REPLAY_PATIENCE):
                    frames = await socket.recv_multipart()
                if len(frames) >= 3 and frames[-2] == _END:
                    return
                yield _batch(frames[1:])
        finally:
            socket.close(linger=0)

    def close(self) -> None:
        """Cut everything."""
        if self._context is not None:
            self._context.destroy(linger=0)

    def _connect(self, context: zmq.asyncio.Context, kind: int, address: str) -> zmq.asyncio.Socket:
        import zmq

        socket: zmq.asyncio.Socket = context.socket(kind)
        socket.setsockopt(zmq.RCVHWM, _MAX_WAITING)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_IVL, _BEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise OSError(f"{address}: {error}") from None
        return socket


def _batch(frames: list[bytes]) -> RawBatch:
    """Of (topic, number, payload), or of (number, payload) as older vLLM replays."""
    if len(frames) < 2 or len(frames[-2]) != _NUMBER_BYTES:
        return RawBatch(None, b"")
    return RawBatch(int.from_bytes(frames[-2], "big"), frames[-1])
