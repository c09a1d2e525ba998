"""The proxy: accepts, connects upstream, and lets two pipes do the rest.

Which connections are struck is drawn from ``seed`` and the connection's number, so the same
connections in the same order have the same fate again.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.testing.chaos.faults import NO_FAULTS, PIECE_BYTES, Ending, Faults, Strike, Towards
from headrace.testing.chaos.pipe import Pipe, Struck

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.clock import Clock
    from headrace.testing.chaos.endpoint import Endpoint
    from headrace.types import Seconds

CONNECT_SECONDS: Final[Seconds] = 5.0
MAX_CONNECTIONS: Final = 1024
"""More are reset, so that memory is bounded: some 2 MiB a connection at the very most."""

_BACKLOG: Final = 1024
_READ_LIMIT_BYTES: Final = 4 * PIECE_BYTES
_LINGER_NOT: Final = struct.pack("ii", 1, 0)  # closing sends a reset and drops what is unsent


@dataclass(slots=True)
class Tally:
    """What was done. ``endings`` counts by Ending, and by ``unreachable``."""

    connections: int = 0
    to_client: int = 0  # bytes
    to_upstream: int = 0
    endings: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {what}" for what, count in self.endings.items()) or "none struck"
        return (
            f"{self.connections} connections, {ends}; {self.to_upstream} bytes to the upstream, "
            f"{self.to_client} to clients"
        )


class FaultProxy:
    """Passes connections on to ``upstream``. ``faults`` may be set at any time, and act at once.

    ``tell`` is called for each connection that goes wrong by our doing. No byte of a connection
    is kept beyond a bounded queue in each direction.
    """

    def __init__(
        self,
        *,
        upstream: Endpoint,
        clock: Clock,
        faults: Faults = NO_FAULTS,
        seed: int = 0,
        tell: Callable[[Strike], None] = lambda strike: None,
    ) -> None:
        self.upstream = upstream
        self.tally = Tally()
        self.tell = tell
        self.clock = clock
        self._faults = faults
        self._seed = seed
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._lines: dict[_Line, asyncio.Task[None]] = {}

    @property
    def faults(self) -> Faults:
        """What happens to connections now."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def num_connections(self) -> int:
        """Open connections of clients."""
        return len(self._lines)

    async def start(self, listening: socket.socket) -> None:
        """Accept on a bound socket."""
        accept, loop = self._accept, asyncio.get_running_loop()
        read_limit, family = _READ_LIMIT_BYTES, listening.family

        def protocol() -> asyncio.StreamReaderProtocol:
            reader = asyncio.StreamReader(limit=read_limit, loop=loop)
            return asyncio.StreamReaderProtocol(reader, accept, loop=loop)

        if family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(protocol, sock=listening, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(protocol, sock=listening, backlog=_BACKLOG)

    def reset_all(self) -> None:
        """Reset every open connection, now."""
        for line in tuple(self._lines):
            line.reset()

    async def close(self) -> None:
        """Accept no more, and reset what is open."""
        if self._server is not None:
            self._server.close()
        tasks = tuple(self._lines.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def change(self) -> None:
        """Wait until other faults are set."""
        await self._changed.wait()

    def note(self, strike: Strike, ending: str) -> None:
        """Count and tell."""
        self.tally.endings[ending] = self.tally.endings.get(ending, 0) + 1
        self.tell(strike)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tally.connections += 1
        if len(self._lines) >= MAX_CONNECTIONS:
            _reset(writer)
            return
        line = _Line(self, self.tally.connections, self._seed, (reader, writer))
        task = asyncio.get_running_loop().create_task(line.run())
        self._lines[line] = task
        task.add_done_callback(lambda _: self._lines.pop(line))


class _Line:
    """One connection. Implements Line."""

    def __init__(
        self,
        proxy: FaultProxy,
        number: int,
        seed: int,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._number = number
        self._seed = seed
        self._luck = float(np.random.default_rng((seed, number)).random())
        self._client = client
        self._upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        peer = client[1].get_extra_info("peername")
        self._peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a local process"

    @property
    def faults(self) -> Faults:
        """See Line."""
        faults = self._proxy.faults
        return faults if self._luck < faults.share else NO_FAULTS

    def struck(self, ending: Ending, pipe: Pipe) -> None:
        """See Line."""
        self._tell(ending, ending, pipe.passed, pipe.side)

    async def change(self) -> None:
        """See Line."""
        await self._proxy.change()

    def reset(self) -> None:
        """Reset both sides."""
        _reset(self._client[1])
        if self._upstream is not None:
            _reset(self._upstream[1])

    async def run(self) -> None:
        """Pass bytes both ways to the end of the connection. Its end is ours in any case."""
        try:
            with suppress(OSError):  # one side is gone; the other is reset below
                await self._end(await self._pass_bytes())
        finally:
            self.reset()

    async def _pass_bytes(self) -> Ending:
        """Return how it is to end. Raises OSError where a side is gone."""
        if self.faults.refuse:
            self._tell(Ending.REFUSE, Ending.REFUSE)
            return Ending.REFUSE
        try:
            await self._connect_and_pass()
        except* Struck as group:
            ending = _first(group)
        except* OSError as group:
            raise ConnectionResetError(f"{group.exceptions[0]}") from None
        else:
            ending = Ending.CUT  # by the two sides themselves
        return ending

    async def _connect_and_pass(self) -> None:
        proxy = self._proxy
        try:
            self._upstream = await proxy.upstream.connect(
                limit_bytes=_READ_LIMIT_BYTES, patience=CONNECT_SECONDS
            )
        except OSError as error:
            self._tell("unreachable", f"cannot connect to {proxy.upstream}: {error}")
            raise
        client, upstream = self._client, self._upstream
        if client[1].is_closing():
            raise ConnectionResetError("the client has left meanwhile")
        up = self._pipe(client[0], upstream[1], Towards.UPSTREAM)
        down = self._pipe(upstream[0], client[1], Towards.CLIENT)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(up.run())
                group.create_task(down.run())
        finally:
            proxy.tally.to_upstream += up.passed
            proxy.tally.to_client += down.passed

    def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, side: Towards
    ) -> Pipe:
        rng = np.random.default_rng((self._seed, self._number, side is Towards.CLIENT))
        return Pipe(source, sink, line=self, side=side, clock=self._proxy.clock, rng=rng)

    async def _end(self, ending: Ending) -> None:
        """Do what is left to do of an ending, before both sides are reset."""
        upstream = self._upstream
        if upstream is None:
            return
        if ending is Ending.CUT:
            for writer in (self._client[1], upstream[1]):
                writer.close()
                async with asyncio.timeout(CONNECT_SECONDS):
                    await writer.wait_closed()
        elif ending is Ending.HALF_OPEN:
            _reset(upstream[1])
            while await self._client[0].read(PIECE_BYTES):
                pass

    def _tell(
        self, ending: str, what: str, passed: int | None = None, side: Towards = Towards.CLIENT
    ) -> None:
        strike = Strike(
            connection=self._number, peer=self._peer, what=what, passed=passed, side=side
        )
        self._proxy.note(strike, ending)


def _first(group: BaseExceptionGroup[Struck]) -> Ending:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Struck)
    return found.ending


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of an orderly end, where the socket can (TCP)."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()
