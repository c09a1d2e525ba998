"""The controller's end of the control connection to one gateway.

The gateway listens on a Unix socket; this end connects, and connects again when the gateway went
away. The whole table of members goes out with every connection and every change, so that a lost
message costs nothing. Questions and answers share the connection, by number.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import TYPE_CHECKING, Protocol, assert_never

from headrace.errors import NotReady, Overloaded, ProtocolError
from headrace.messages import (
    Answer,
    Ask,
    Emptied,
    Members,
    PoolReport,
    decode_to_controller,
)
from headrace.server.transport.frames import FrameConnection

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.server.transport.frames import ConnectionLimits
    from headrace.types import Seconds

MAX_QUESTIONS = 64
"""That wait for their answers at one time."""

ANSWER_SECONDS: Seconds = 5.0

_log = logging.getLogger(__name__)


class ControlEvents(Protocol):
    """What a gateway reports. Called on the loop; must not block or raise."""

    def gateway_load(self, report: PoolReport) -> None:
        """Its pool, some times a second."""
        ...

    def gateway_emptied(self, emptied: Emptied) -> None:
        """A draining replica has none of its requests left."""
        ...


class ControlLink:
    """Keeps connected to the gateway at ``path``. ``events`` are bound before ``run``."""

    def __init__(self, path: Path, limits: ConnectionLimits) -> None:
        self.num_connections = 0  # so far: behind a new one may be a new gateway
        self._path = path
        self._limits = limits
        self._events: ControlEvents | None = None
        self._members: Members | None = None
        self._connection: FrameConnection | None = None
        self._lost = asyncio.Event()
        self._numbers = count()
        self._questions: dict[int, asyncio.Future[Answer]] = {}

    def bind(self, events: ControlEvents) -> None:
        """Say who is told."""
        self._events = events

    def send_members(self, members: Members) -> None:
        """Make this the gateway's table, now or as soon as it is connected."""
        self._members = members
        if self._connection is not None:
            self._connection.send(members)

    async def ask(self, path: str) -> Answer:
        """Ask the gateway; raise NotReady without an answer in time, Overloaded beyond 64."""
        if self._connection is None:
            raise NotReady("the gateway is not connected; it is started again when it died")
        if len(self._questions) >= MAX_QUESTIONS:
            raise Overloaded(f"{MAX_QUESTIONS} questions wait for the gateway already")
        number = next(self._numbers) & 0xFFFF_FFFF
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._questions[number] = future
        self._connection.send(Ask(number, path))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await future
        except TimeoutError:
            raise NotReady(f"the gateway did not answer within {ANSWER_SECONDS:g} s") from None
        finally:
            del self._questions[number]

    async def run(self) -> None:
        """Keep connected until cancelled."""
        pause = self._limits.retry_min_seconds
        try:
            while True:
                if await self._connect():
                    pause = self._limits.retry_min_seconds
                    await self._lost.wait()
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._limits.retry_max_seconds)
        finally:
            if self._connection is not None:
                self._connection.close("the controller is shutting down")

    async def _connect(self) -> bool:
        loop = asyncio.get_running_loop()
        self._lost.clear()
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                await loop.create_unix_connection(
                    lambda: FrameConnection(self, self._limits), str(self._path)
                )
        except OSError as error:  # TimeoutError is one
            _log.debug("no control connection: %s", error)
            return False
        return True

    # From the connection

    def opened(self, connection: FrameConnection) -> None:
        """See FramePeer."""
        self._connection = connection
        if self._members is not None:
            connection.send(self._members)
        self.num_connections += 1

    def received(self, connection: FrameConnection, payload: bytes) -> None:
        """See FramePeer."""
        message = decode_to_controller(payload)
        if self._events is None:
            raise ProtocolError("nobody listens yet")
        match message:
            case PoolReport():
                self._events.gateway_load(message)
            case Emptied():
                self._events.gateway_emptied(message)
            case Answer():
                future = self._questions.get(message.number)
                if future is not None and not future.done():
                    future.set_result(message)
            case _:
                assert_never(message)

    def closed(self, connection: FrameConnection, reason: str) -> None:
        """See FramePeer."""
        _log.info("the control connection is gone: %s", reason)
        self._connection = None
        self._lost.set()
        for future in self._questions.values():
            if not future.done():
                future.set_exception(NotReady("the gateway went away before it answered"))
