"""The gateway's end: one engine behind a Unix socket, as a ReplicaLink.

``run`` keeps the connection: it connects, waits for the engine's Welcome, and when the engine
goes away it reports that and tries again, so that a restarted engine comes back by itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_never

from headrace.core.router.events import AttemptFailed
from headrace.errors import DeadlineInfeasible, NotReady, Overloaded, ProtocolError, ReplicaLost
from headrace.messages import (
    AbortRequest,
    Beat,
    Hello,
    KvChange,
    KvContent,
    KvSnapshotRequest,
    Load,
    Rejected,
    TokenFrame,
    Welcome,
    decode_to_gateway,
)
from headrace.server.transport.convert import (
    description_of,
    output_of,
    process_of,
    report_of,
    submit_message,
    unpack_keys,
)
from headrace.server.transport.frames import FrameConnection
from headrace.types import Output

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.clock import Clock
    from headrace.messages import ToGateway
    from headrace.server.links import LinkEvents
    from headrace.server.transport.frames import ConnectionLimits
    from headrace.types import ReplicaId, Request, RequestId, Tokens

RETRYABLE = frozenset(
    error.code for error in (Overloaded, NotReady, ReplicaLost, DeadlineInfeasible)
)
"""Codes of refusals that say nothing of the request: another replica may take it."""

BUSY_SECONDS = 1.0
"""A full engine, or one that ends, is left alone for so long: about a load report's age."""


class _Stream:
    """A request on its way. ``cached_tokens`` is what the engine last said of it."""

    __slots__ = ("cached_tokens", "request_id")

    def __init__(self, request_id: RequestId) -> None:
        self.request_id = request_id
        self.cached_tokens: Tokens = 0


class _Attempt:
    """One connection, from connect to loss. Stream numbers live as long as it does."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self.connection: FrameConnection | None = None
        self.is_ready = False
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.welcomed = asyncio.Event()
        self.streams: dict[int, _Stream] = {}
        self.numbers: dict[RequestId, int] = {}
        self.next_number = 0

    def opened(self, connection: FrameConnection) -> None:
        """See FramePeer."""
        self.connection = connection
        connection.send(Hello(self._link.gateway))

    def received(self, connection: FrameConnection, payload: bytes) -> None:
        """See FramePeer."""
        message = decode_to_gateway(payload)
        if isinstance(message, Welcome) is self.is_ready:
            raise ProtocolError(f"a {type(message).__name__} out of turn")
        self._link.take(self, message)

    def closed(self, connection: FrameConnection, reason: str) -> None:
        """See FramePeer."""
        if not self.lost.done():
            self.lost.set_result(reason)
        if self.is_ready:
            self._link.lose(self, reason)

    def forget(self, number: int) -> None:
        """Drop a stream: what still comes for it is ignored."""
        stream = self.streams.pop(number)
        del self.numbers[stream.request_id]


class EngineLink:
    """A ReplicaLink over a Unix socket at ``path``."""

    def __init__(
        self,
        *,
        replica: ReplicaId,
        gateway: str,
        path: Path,
        events: LinkEvents,
        clock: Clock,
        limits: ConnectionLimits,
    ) -> None:
        self.gateway = gateway
        self.events = events
        self._replica = replica
        self._path = path
        self._clock = clock
        self._limits = limits
        self._current: _Attempt | None = None  # None unless ready

    @property
    def replica(self) -> ReplicaId:
        """See ReplicaLink."""
        return self._replica

    def submit(self, request: Request) -> None:
        """See ReplicaLink. A request for a replica that is gone comes back as ``worker_lost``."""
        attempt = self._current
        if attempt is None or attempt.connection is None:
            reason = f"replica {self._replica} is not connected"
            failure = self._failure(request.id, Rejected(0, ReplicaLost.code, reason))
            asyncio.get_running_loop().call_soon(self.events.failed, failure)
            return
        number = attempt.next_number
        attempt.next_number += 1
        attempt.streams[number] = _Stream(request.id)
        attempt.numbers[request.id] = number
        attempt.connection.send(submit_message(request, stream=number, now=self._clock.now()))

    def abort(self, request_id: RequestId) -> None:
        """See ReplicaLink."""
        attempt = self._current
        if attempt is None or attempt.connection is None:
            return
        number = attempt.numbers.get(request_id)
        if number is not None:
            attempt.forget(number)
            attempt.connection.send(AbortRequest(number))

    def want_snapshot(self) -> None:
        """See ReplicaLink. An engine sends its content to a new gateway unasked."""
        if self._current is not None and self._current.connection is not None:
            self._current.connection.send(KvSnapshotRequest())

    async def run(self) -> None:
        """Keep connected until cancelled."""
        pause = self._limits.retry_min_seconds
        attempt: _Attempt | None = None
        try:
            while True:
                attempt = _Attempt(self)
                await self._connect(attempt)
                if attempt.is_ready:
                    pause = self._limits.retry_min_seconds
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._limits.retry_max_seconds)
        finally:
            if attempt is not None and attempt.connection is not None:
                attempt.connection.close("the gateway is shutting down")

    async def _connect(self, attempt: _Attempt) -> None:
        """Connect, and return as soon as there is no connection."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                _, connection = await loop.create_unix_connection(
                    lambda: FrameConnection(attempt, self._limits), str(self._path)
                )
        except OSError:  # TimeoutError is one
            return
        try:
            async with asyncio.timeout(self._limits.greeting_seconds):
                await attempt.welcomed.wait()
        except TimeoutError:
            connection.abort(f"no Welcome within {self._limits.greeting_seconds:g} s")
        await attempt.lost

    # From the connection

    def take(self, attempt: _Attempt, message: ToGateway) -> None:
        """Hand on what the engine says."""
        match message:
            case TokenFrame():
                self._take_tokens(attempt, message)
            case Rejected():
                self._take_rejection(attempt, message)
            case Load():
                self.events.load(self._replica, report_of(message))
            case Beat():
                self.events.beat(self._replica, process_of(message))
            case KvChange(number=number, stored=stored, removed=removed, epoch=epoch):
                self.events.kv_changed(
                    self._replica, number, unpack_keys(stored), unpack_keys(removed), epoch
                )
            case KvContent(number=number, keys=keys, epoch=epoch):
                self.events.kv_listed(self._replica, number, unpack_keys(keys), epoch)
            case Welcome():
                self._take_welcome(attempt, message)
            case _:
                assert_never(message)

    def lose(self, attempt: _Attempt, reason: str) -> None:
        """The engine is gone, and all its streams with it."""
        assert self._current is attempt
        self._current = None
        self.events.replica_lost(self._replica, reason)

    def _take_welcome(self, attempt: _Attempt, message: Welcome) -> None:
        description = description_of(message)
        if description.replica != self._replica:
            raise ProtocolError(f"{description.replica} answers at the socket of {self._replica}")
        attempt.is_ready = True
        attempt.welcomed.set()
        self._current = attempt
        self.events.replica_ready(self, description)

    def _take_tokens(self, attempt: _Attempt, frame: TokenFrame) -> None:
        if len(frame.streams) != len(frame.tokens):
            raise ProtocolError(f"{len(frame.streams)} streams for {len(frame.tokens)} tokens")
        outputs = []
        for number, token in zip(frame.streams, frame.tokens, strict=True):
            stream = self._stream(attempt, number)
            if stream is not None:
                outputs.append(Output(stream.request_id, (token,), None, stream.cached_tokens))
        for row in frame.rows:
            stream = self._stream(attempt, row.stream)
            if stream is None:
                continue
            stream.cached_tokens = row.cached_tokens
            outputs.append(output_of(row, request_id=stream.request_id))
            if row.finish is not None:
                attempt.forget(row.stream)
        if outputs:
            self.events.outputs(self._replica, outputs)

    def _take_rejection(self, attempt: _Attempt, message: Rejected) -> None:
        stream = self._stream(attempt, message.stream)
        if stream is not None:
            attempt.forget(message.stream)
            self.events.failed(self._failure(stream.request_id, message))

    def _failure(self, request_id: RequestId, refusal: Rejected) -> AttemptFailed:
        code = refusal.code
        return AttemptFailed(
            replica=self._replica,
            request_id=request_id,
            code=code,
            reason=refusal.reason,
            retryable=code in RETRYABLE,
            busy_for=BUSY_SECONDS if code in (Overloaded.code, NotReady.code) else None,
            retry_after=refusal.retry_after,
        )

    def _stream(self, attempt: _Attempt, number: int) -> _Stream | None:
        """The stream of that number, None if it was aborted: its tokens are stale."""
        if number >= attempt.next_number:
            raise ProtocolError(f"stream {number} was never opened")
        return attempt.streams.get(number)
