"""The engine's end: takes requests from gateways, sends each the tokens of its own streams.

A gateway that goes away has its requests aborted. Requests are known to the engine by their
RequestId, to a gateway by the stream number that it chose.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, assert_never

from headrace.core.scheduler.events import Abort, Submit
from headrace.errors import InvalidRequest, NotReady, ProtocolError
from headrace.messages import (
    AbortRequest,
    Hello,
    KvSnapshotRequest,
    Rejected,
    SubmitRequest,
    decode_to_engine,
)
from headrace.server.address import bind_unix
from headrace.server.transport.convert import request_of, welcome_message
from headrace.server.transport.door import objection, stranger
from headrace.server.transport.frames import FrameConnection
from headrace.server.transport.sessions import Gateways, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from headrace.clock import Clock
    from headrace.core.scheduler.events import Reject, SnapshotWanted
    from headrace.server.links import ReplicaDescription
    from headrace.server.transport.frames import ConnectionLimits
    from headrace.server.transport.sessions import Session
    from headrace.types import Output, RequestId

MAX_GATEWAYS = 64
"""Connections to one engine: far more than one per gateway process."""

_log = logging.getLogger(__name__)


class EngineListener:
    """Accepts gateways on a Unix socket and speaks for one engine.

    ``deliver`` is given the core's events, on the loop; ``gateways`` takes what all are told.
    """

    def __init__(
        self,
        *,
        description: ReplicaDescription,
        deliver: Callable[[Submit | Abort | SnapshotWanted], None],
        clock: Clock,
        limits: ConnectionLimits,
    ) -> None:
        self._description = description
        self._deliver = deliver
        self._clock = clock
        self._limits = limits
        self.gateways = Gateways(deliver, epoch=description.epoch)
        self._routes: dict[RequestId, Route] = {}
        self._server: asyncio.Server | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_draining = False

    @property
    def num_requests(self) -> int:
        """Requests accepted and not finished."""
        return len(self._routes)

    async def start(self, path: Path) -> None:
        """Listen on a new socket at ``path`` that only this user may open."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: FrameConnection(self, self._limits), sock=bind_unix(path)
        )

    async def drain(self) -> None:
        """Take no more requests; return when those accepted have ended. Bound it from outside."""
        self._is_draining = True
        if self._server is not None:
            self._server.close()
        await self._idle.wait()

    def close(self, reason: str) -> None:
        """Abort what is left and end all connections."""
        self._is_draining = True
        if self._server is not None:
            self._server.close()
        for session in self.gateways:
            session.connection.close(reason)

    # From the engine

    def send_outputs(self, outputs: Iterable[Output]) -> None:
        """Send the tokens of one step, one frame for each gateway concerned."""
        for output in outputs:
            route = self._routes.get(output.request_id)
            if route is None:
                continue
            route.session.add(route, output)
            if output.finish is not None:
                self._forget(output.request_id)
        for session in self.gateways:
            session.flush()

    def send_rejection(self, reject: Reject) -> None:
        """Tell the gateway that this request will not be served."""
        route = self._routes.get(reject.request_id)
        if route is not None:
            self._forget(reject.request_id)
            message = Rejected(route.stream, reject.code, reject.reason, reject.retry_after)
            route.session.connection.send(message)

    # From connections (FramePeer)

    def opened(self, connection: FrameConnection) -> None:
        """See FramePeer."""
        session = self.gateways.open(connection)
        if len(self.gateways) > MAX_GATEWAYS:
            connection.abort(f"more than {MAX_GATEWAYS} gateways")
            return
        seconds = self._limits.greeting_seconds
        session.greeting = asyncio.get_running_loop().call_later(
            seconds, connection.abort, f"no Hello within {seconds:g} s"
        )

    def received(self, connection: FrameConnection, payload: bytes) -> None:
        """See FramePeer."""
        session = self.gateways[connection]
        message = decode_to_engine(payload)
        if session.gateway is None and not isinstance(message, Hello):
            raise ProtocolError(f"the first frame is a {type(message).__name__}, not a Hello")
        match message:
            case Hello():
                self._greet(session, message)
            case SubmitRequest():
                self._submit(session, message)
            case AbortRequest():
                self._abort(session, message.stream)
            case KvSnapshotRequest():
                self.gateways.want_content(session)
            case _:
                assert_never(message)

    def closed(self, connection: FrameConnection, reason: str) -> None:
        """See FramePeer."""
        session = self.gateways.close(connection)
        if session.greeting is not None:
            session.greeting.cancel()
        if session.gateway is not None:
            _log.info("gateway %s is gone: %s", session.gateway, reason)
        for stream in tuple(session.requests):
            self._abort(session, stream)

    def _greet(self, session: Session, message: Hello) -> None:
        if session.gateway is not None:
            raise ProtocolError("a second Hello")
        assert session.greeting is not None
        session.greeting.cancel()
        session.gateway = message.gateway
        session.connection.send(welcome_message(self._description))
        self.gateways.greeted(session)

    def _submit(self, session: Session, message: SubmitRequest) -> None:
        stream = message.stream
        if stream in session.requests:
            raise ProtocolError(f"stream {stream} is in use")
        request = request_of(message, now=self._clock.now())
        if self._is_draining:
            session.connection.send(Rejected(stream, NotReady.code, "the replica is shutting down"))
            return
        vocab_size = self._description.vocab_size
        wrong = stranger(message.prompt, vocab_size) or objection(request, vocab_size=vocab_size)
        if request.id in self._routes:
            wrong = f"request id {request.id} is in use"
        if wrong is not None:
            session.connection.send(Rejected(stream, InvalidRequest.code, wrong))
            return
        self._routes[request.id] = Route(session, stream)
        session.requests[stream] = request.id
        self._idle.clear()
        self._deliver(Submit(request))

    def _abort(self, session: Session, stream: int) -> None:
        request_id = session.requests.get(stream)
        if request_id is not None:
            self._forget(request_id)
            self._deliver(Abort(request_id))

    def _forget(self, request_id: RequestId) -> None:
        route = self._routes.pop(request_id)
        del route.session.requests[route.stream]
        if not self._routes:
            self._idle.set()
