"""A server's KV events without the server: a cache that only keeps count, and ZeroMQ sockets.

``KvPublisher`` says what vLLM and SGLang would (see server/gateway/foreign/kv_wire.py) of the
prompts that it is told of. Its names of blocks are drawn anew with each, as vLLM's are with each
process. Needs ``pyzmq``.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zmq.asyncio

_END = b"\xff" * 8
_ANYWHERE = "tcp://127.0.0.1:*"


class KvPublisher:
    """Publishes on loopback ports of its own, from ``start`` to ``close``.

    ``as_arrays``: events and replays as of SGLang and older vLLM. ``replays``: how many batches it
    keeps for those who missed some. ``life`` goes into all names.
    """

    def __init__(
        self,
        *,
        block_size: int = 16,
        as_arrays: bool = False,
        replays: int = 10_000,
        life: str = "",
    ) -> None:
        self.endpoint = ""
        self.replay_endpoint = ""
        self._block_size = block_size
        self._as_arrays = as_arrays
        self._life = life
        self._numbers = itertools.count()
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=replays)
        self._context: zmq.asyncio.Context | None = None
        self._stream: zmq.asyncio.Socket | None = None
        self._answering: asyncio.Task[None] | None = None

    def start(self, endpoint: str = _ANYWHERE, replay: str = _ANYWHERE) -> None:
        """Bind where events are published, and where missed ones are asked for."""
        import zmq
        import zmq.asyncio

        self._context = zmq.asyncio.Context()
        # XPUB is PUB, but that it says who has subscribed
        self._stream = self._context.socket(zmq.XPUB)
        self._stream.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._stream.bind(endpoint)
        self.endpoint = self._stream.getsockopt_string(zmq.LAST_ENDPOINT)
        replays = self._context.socket(zmq.ROUTER)
        replays.bind(replay)
        self.replay_endpoint = replays.getsockopt_string(zmq.LAST_ENDPOINT)
        self._answering = asyncio.get_running_loop().create_task(self._answer(replays))

    async def subscribed(self) -> None:
        """Wait until one more has subscribed: what is published before is not for it."""
        assert self._stream is not None
        while not (await self._stream.recv()).startswith(b"\x01"):
            pass

    async def close(self) -> None:
        """Cut everything."""
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.wait([self._answering])
        if self._context is not None:
            self._context.destroy(linger=0)

    def store(self, tokens: Sequence[int], first: int = 0) -> list[object]:
        """Return the event that the full blocks of a prompt are stored from the ``first`` on."""
        names, size = self.names(tokens), self._block_size
        parent = names[first - 1] if first else None
        inside = list(tokens[first * size : len(names) * size])
        return self._event(
            "BlockStored",
            block_hashes=names[first:],
            parent_block_hash=parent,
            token_ids=inside,
            block_size=size,
            lora_id=None,
            medium="GPU",
        )

    def remove(self, tokens: Sequence[int], first: int = 0) -> list[object]:
        """Return the event that those left the cache."""
        return self._event("BlockRemoved", block_hashes=self.names(tokens)[first:], medium="GPU")

    def clear(self) -> list[object]:
        """Return the event that the cache is empty."""
        return self._event("AllBlocksCleared")

    def names(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the names of a prompt's full blocks."""
        names, parent, size = [], self._life.encode(), self._block_size
        for end in range(size, len(tokens) + 1, size):
            parent = sha256(parent + repr(list(tokens[end - size : end])).encode()).digest()
            names.append(parent)
        return names

    async def publish(self, *events: list[object], is_heard: bool = True) -> int:
        """Publish a batch and return its number. If it is not heard, it can only be replayed."""
        written = [event if self._as_arrays else _as_map(event) for event in events]
        return await self.publish_raw(msgspec.msgpack.encode([0.0, written, 0]), is_heard=is_heard)

    async def publish_raw(self, payload: bytes, *, is_heard: bool = True) -> int:
        """Publish any bytes as a batch."""
        assert self._stream is not None
        number = next(self._numbers)
        self._kept.append((number, payload))
        if is_heard:
            await self._stream.send_multipart((b"", number.to_bytes(8, "big"), payload))
        return number

    def _event(self, tag: str, **fields: object) -> list[object]:
        return [tag, *fields.items()] if not self._as_arrays else [tag, *fields.values()]

    async def _answer(self, replays: zmq.asyncio.Socket) -> None:
        topic = () if self._as_arrays else (b"",)
        while True:
            asker, _, asked = await replays.recv_multipart()
            first = int.from_bytes(asked, "big")
            for number, payload in tuple(self._kept):
                if number >= first:
                    frames = (asker, b"", *topic, number.to_bytes(8, "big"), payload)
                    await replays.send_multipart(frames)
            await replays.send_multipart((asker, b"", *topic, _END, b""))


def _as_map(event: list[object]) -> dict[str, object]:
    tag, *fields = event
    named = {field[0]: field[1] for field in fields if isinstance(field, tuple)}
    return {"type": tag, **named}
