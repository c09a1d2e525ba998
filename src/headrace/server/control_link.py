"""The controller's end of the control connection to one gateway.

The gateway listens on a Unix socket; this end connects, and connects again when the gateway went
away. The whole table of members goes out with every connection and every change, so that a lost
message costs nothing. Questions and answers share the connection, by number.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from itertools import count
from typing import TYPE_CHECKING, Protocol, assert_never

from headrace.errors import NotReady, Overloaded, ProtocolError
from headrace.messages import (
    Answer,
    Ask,
    AskAll,
    Emptied,
    Farewell,
    Hello,
    Members,
    PoolReport,
    decode_to_controller,
)
from headrace.server.transport.frames import FrameConnection

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from headrace.server.gateway.http.messages import Response
    from headrace.server.transport.frames import ConnectionLimits
    from headrace.types import Seconds

MAX_QUESTIONS = 64
"""That wait for their answers at one time."""

ANSWER_SECONDS: Seconds = 5.0

_log = logging.getLogger(__name__)


class ControlEvents(Protocol):
    """What a gateway reports. Called on the loop; must not block or raise."""

    def gateway_joined(self, name: str) -> None:
        """It is connected."""
        ...

    def gateway_left(self, name: str) -> None:
        """It is not any more, and its requests are gone or will be."""
        ...

    def gateway_load(self, report: PoolReport) -> None:
        """Its pool, some times a second."""
        ...

    def gateway_emptied(self, emptied: Emptied) -> None:
        """A draining replica has none of its requests left."""
        ...


class Collector(Protocol):
    """Who answers for all gateways together, and keeps the figures of those that end."""

    async def answer(self, path: str) -> Response:
        """Return the answer of all. Never raises."""
        ...

    def hello(self, name: str, life: str) -> None:
        """The process that is connected under this name says who it is."""
        ...

    def farewell(self, name: str, figures: str) -> None:
        """It ends, and has counted this."""
        ...

    def lost(self, name: str) -> None:
        """It is not connected any more; it, or another process in its place, may come back."""
        ...

    def gone(self, name: str) -> None:
        """Nobody of this name comes back."""
        ...


class _Questions:
    """On their way, by number."""

    def __init__(self) -> None:
        self._numbers = count()
        self._futures: dict[int, asyncio.Future[Answer]] = {}

    def put(self) -> tuple[int, asyncio.Future[Answer]]:
        """Return a new number and where its answer will be. Raises Overloaded."""
        if len(self._futures) >= MAX_QUESTIONS:
            raise Overloaded(f"{MAX_QUESTIONS} questions wait for the gateway already")
        number = next(self._numbers) & 0xFFFF_FFFF
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._futures[number] = future
        return number, future

    def forget(self, number: int) -> None:
        """Nobody waits for it any more."""
        del self._futures[number]

    def answer(self, answer: Answer) -> None:
        """The gateway says this."""
        future = self._futures.get(answer.number)
        if future is not None and not future.done():
            future.set_result(answer)

    def lose(self) -> None:
        """No answer comes."""
        for future in self._futures.values():
            if not future.done():
                future.set_exception(NotReady("the gateway went away before it answered"))


class ControlLink:
    """Keeps connected to the gateway at ``path``. ``events`` are bound before ``run``."""

    def __init__(self, path: Path, limits: ConnectionLimits, *, name: str = "g0") -> None:
        self.num_connections = 0  # so far: behind a new one may be a new gateway
        self._name = name
        self._path = path
        self._limits = limits
        self._bound: tuple[ControlEvents, Collector] | None = None
        self._members: Members | None = None
        self._connection: FrameConnection | None = None
        self._lost = asyncio.Event()
        self._questions = _Questions()
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def is_connected(self) -> bool:
        """Whether it can be asked."""
        return self._connection is not None

    def bind(self, events: ControlEvents, collector: Collector) -> None:
        """Say who is told."""
        self._bound = (events, collector)

    def send_members(self, members: Members) -> None:
        """Make this the gateway's table, now or as soon as it is connected."""
        self._members = members
        if self._connection is not None:
            self._connection.send(members)

    async def ask(self, path: str) -> Answer:
        """Ask the gateway; raise NotReady without an answer in time, Overloaded beyond 64."""
        if self._connection is None:
            raise NotReady("the gateway is not connected; it is started again when it died")
        number, future = self._questions.put()
        self._connection.send(Ask(number, path))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await future
        except TimeoutError:
            raise NotReady(f"the gateway did not answer within {ANSWER_SECONDS:g} s") from None
        finally:
            self._questions.forget(number)

    async def lost(self, limit: Seconds) -> None:
        """Wait until it is not connected, at most ``limit``."""
        if self._connection is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await self._lost.wait()

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
        if self._bound is not None:
            self._bound[0].gateway_joined(self._name)

    def received(self, connection: FrameConnection, payload: bytes) -> None:
        """See FramePeer."""
        message = decode_to_controller(payload)
        if self._bound is None:
            raise ProtocolError("nobody listens yet")
        events, collector = self._bound
        match message:
            case Hello(life):
                collector.hello(self._name, life)
            case Farewell(figures):
                collector.farewell(self._name, figures.decode())
            case AskAll(number, path):
                self._answer(connection, number, collector.answer(path))
            case PoolReport():
                events.gateway_load(message)
            case Emptied():
                events.gateway_emptied(message)
            case Answer():
                self._questions.answer(message)
            case _:
                assert_never(message)

    def _answer(
        self, connection: FrameConnection, number: int, answering: Coroutine[None, None, Response]
    ) -> None:
        async def answer() -> None:
            response = await answering
            content_type = response.content_type.decode()
            connection.send(Answer(number, response.status, content_type, response.body))

        task = asyncio.create_task(answer())
        self._answering.add(task)  # as many as the gateway asks at one time
        task.add_done_callback(self._answering.discard)

    def closed(self, connection: FrameConnection, reason: str) -> None:
        """See FramePeer."""
        _log.info("the control connection is gone: %s", reason)
        self._connection = None
        if self._bound is not None:
            events, collector = self._bound
            collector.lost(self._name)
            events.gateway_left(self._name)
        self._lost.set()
        self._questions.lose()
