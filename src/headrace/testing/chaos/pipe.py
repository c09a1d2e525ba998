"""One direction of a connection: bytes come in, wait their time in a bounded queue, go out.

    source -> [ (due, piece), .. ] -> faults by count -> sink

Where the sink does not read, or the direction hangs, the queue fills, and the source is read no
more: its sender sees what it would see of a slow or stuck peer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from headrace.testing.chaos.faults import NO_FAULTS, PIECE_BYTES, Ending

if TYPE_CHECKING:
    from headrace.clock import Clock
    from headrace.testing.chaos.faults import Faults, Towards
    from headrace.types import Seconds

MAX_PIECES: Final = 64
"""That wait in one direction: at most 1 MiB."""

_BITS: Final = 8


class Struck(Exception):
    """The connection ends in this way."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


class Line(Protocol):
    """The connection, as its pipes see it."""

    @property
    def faults(self) -> Faults:
        """What is done to it now."""
        ...

    def struck(self, ending: Ending, pipe: Pipe) -> None:
        """Tell that it was."""
        ...

    async def change(self) -> None:
        """Wait until other faults are set."""
        ...


class Pipe:
    """Passes bytes towards one side until the other has no more, or until it is struck."""

    def __init__(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        line: Line,
        side: Towards,
        clock: Clock,
        rng: np.random.Generator,
    ) -> None:
        self.passed = 0  # bytes
        self.side = side
        self._source = source
        self._sink = sink
        self._line = line
        self._clock = clock
        self._rng = rng
        self._queue: asyncio.Queue[tuple[Seconds, bytes]] = asyncio.Queue(MAX_PIECES)
        self._due: Seconds = 0.0  # of the last piece
        self._busy_until: Seconds = 0.0  # by bandwidth

    async def run(self) -> None:
        """Raises Struck and OSError, in a group."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take())
            group.create_task(self._give())

    @property
    def _faults(self) -> Faults:
        faults = self._line.faults
        return faults if faults.concerns(self.side) else NO_FAULTS

    async def _take(self) -> None:
        while data := await self._source.read(PIECE_BYTES):
            size = self._faults.piece_bytes
            for start in range(0, len(data), size):
                piece = data[start : start + size]
                await self._queue.put((self._due_of(len(piece)), piece))
        await self._queue.put((self._due, b""))

    def _due_of(self, num_bytes: int) -> Seconds:
        """When a piece that came now may go."""
        faults, now = self._faults, self._clock.now()
        delay = faults.latency
        if faults.jitter:
            delay += float(self._rng.uniform(0, faults.jitter))
        rate = faults.rate
        if rate is not None:
            self._busy_until = max(self._busy_until, now) + num_bytes / rate
            delay += self._busy_until - now
        self._due = max(self._due, now + delay)
        return self._due

    async def _give(self) -> None:
        while True:
            due, piece = await self._queue.get()
            wait = due - self._clock.now()
            if wait > 0:
                await asyncio.sleep(wait)
            if not piece:
                if self._sink.can_write_eof():
                    self._sink.write_eof()
                return
            await self._pass_on(piece)

    async def _pass_on(self, piece: bytes) -> None:
        while piece:
            room = await self._room()
            part, piece = piece[:room], piece[room:]
            self._sink.write(self._corrupted(part))
            await self._sink.drain()
            self.passed += len(part)
        await self._room()  # at the limit it is struck at once, not at the next byte

    async def _room(self) -> int:
        """Return how many bytes may pass, once some may. Raises Struck."""
        told = False
        while True:
            limit = self._faults.limit
            room = PIECE_BYTES if limit is None else limit.after - self.passed
            if limit is None or room > 0:
                return room
            if not told:
                self._line.struck(limit.ending, self)
            if limit.ending is not Ending.HANG:
                raise Struck(limit.ending)
            told = True
            await self._line.change()

    def _corrupted(self, data: bytes) -> bytes:
        share = self._faults.corrupt
        if not share:
            return data
        found = np.frombuffer(data, np.uint8).copy()
        hit = np.flatnonzero(self._rng.random(len(found)) < share)
        found[hit] ^= (1 << self._rng.integers(0, _BITS, len(hit))).astype(np.uint8)
        return found.tobytes()
