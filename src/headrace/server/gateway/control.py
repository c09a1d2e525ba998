"""The gateway's end of the control connection: the table of replicas comes in, load goes out.

One controller at a time: a new connection ends the one before it. Frames as between gateway and
engine; the socket's mode is 0600.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, assert_never

from headrace.errors import NotReady
from headrace.messages import (
    Answer,
    Ask,
    AskAll,
    Emptied,
    Farewell,
    Hello,
    Members,
    decode_from_controller,
)
from headrace.server.address import bind_unix
from headrace.server.gateway.http.messages import Response, error_response
from headrace.server.transport.frames import FrameConnection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from headrace.messages import Member, PoolReport
    from headrace.server.transport.frames import ConnectionLimits
    from headrace.types import ReplicaId, Seconds

REPORT_SECONDS: Final[Seconds] = 0.25
"""Between two PoolReports."""

MAX_QUESTIONS: Final = 16
"""To the controller, that wait for their answers."""

ANSWER_SECONDS: Final[Seconds] = 6.0
"""Longer than the controller waits for one gateway."""

_LOG = logging.getLogger(__name__)


class Questions:
    """To the controller, on their way. Each is answered, in time or not."""

    def __init__(self) -> None:
        self._replies: dict[int, tuple[Callable[[Response], None], asyncio.TimerHandle]] = {}
        self._number = 0

    def put(self, reply: Callable[[Response], None]) -> int | None:
        """Return the number of a new question, None if too many are open."""
        if len(self._replies) >= MAX_QUESTIONS:
            return None
        self._number = number = (self._number + 1) & 0xFFFF_FFFF
        late = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._fail, number)
        self._replies[number] = (reply, late)
        return number

    def answer(self, answer: Answer) -> None:
        """The controller says this."""
        if answer.number in self._replies:
            reply, late = self._replies.pop(answer.number)
            late.cancel()
            reply(Response(answer.status, answer.body, answer.content_type.encode()))

    def lose(self) -> None:
        """Nobody will answer."""
        for number in tuple(self._replies):
            self._fail(number)

    def _fail(self, number: int) -> None:
        reply, late = self._replies.pop(number)
        late.cancel()
        reply(error_response(NotReady("the other gateways did not answer; try again shortly")))


class ControlDoor:
    """Listens for the controller.

    ``gateway`` is this gateway's name, ``life`` that of its process; ``update`` takes each new
    table of members, ``report`` says what the load is, ``answer`` answers questions by path.
    """

    def __init__(
        self,
        *,
        gateway: str,
        life: str = "",
        update: Callable[[tuple[Member, ...]], None],
        report: Callable[[], PoolReport],
        answer: Callable[[str], Response],
        limits: ConnectionLimits,
    ) -> None:
        self._gateway = gateway
        self._life = life or gateway
        self._update = update
        self._report_load = report
        self._answer_path = answer
        self._limits = limits
        self._connection: FrameConnection | None = None
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._questions = Questions()

    async def start(self, path: Path) -> None:
        """Listen at ``path``; what is there from an earlier process is replaced."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: FrameConnection(self, self._limits), sock=bind_unix(path)
        )
        self._report()

    def close(self) -> None:
        """Take no questions any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.send(Farewell(self._answer_path("/metrics").body))
            connection.close("the gateway is shutting down")
        self._questions.lose()

    def emptied(self, replica: ReplicaId) -> None:
        """Tell the controller that a draining replica has none of our requests left."""
        if self._connection is not None:
            self._connection.send(Emptied(self._gateway, replica))

    def ask_all(self, path: str, reply: Callable[[Response], None]) -> bool:
        """See AsksAll: the controller asks all gateways, this one too."""
        if self._connection is None:
            return False
        number = self._questions.put(reply)
        if number is not None:
            self._connection.send(AskAll(number, path))
        return number is not None

    def opened(self, connection: FrameConnection) -> None:
        """See FramePeer."""
        previous, self._connection = self._connection, connection
        if previous is not None:
            previous.abort("another controller has come")
        connection.send(Hello(self._life))
        _LOG.info("the controller is connected")

    def received(self, connection: FrameConnection, payload: bytes) -> None:
        """See FramePeer."""
        message = decode_from_controller(payload)
        if connection is not self._connection:
            return
        match message:
            case Members(members):
                self._update(members)
            case Ask(number, path):
                connection.send(self._answer(number, path))
            case Answer():
                self._questions.answer(message)
            case _:
                assert_never(message)

    def closed(self, connection: FrameConnection, reason: str) -> None:
        """See FramePeer. Requests go on with the replicas of the last table."""
        if connection is self._connection:
            self._connection = None
            self._questions.lose()
            _LOG.warning("the controller is gone: %s", reason)

    def _answer(self, number: int, path: str) -> Answer:
        response = self._answer_path(path)
        return Answer(number, response.status, response.content_type.decode(), response.body)

    def _report(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REPORT_SECONDS, self._report)
        connection = self._connection
        if connection is not None and not connection.is_congested:
            connection.send(self._report_load())
