"""Follows the KV events of one foreign replica while it is ready, and tells the Router.

Each time the replica becomes ready its events are followed anew: it may be another process. What
was published before is asked for, where there is a replay endpoint. Nothing that comes here can
hurt the gateway: what is malformed is counted and said once, and counts as missed.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from headrace.core.router.foreign_blocks import ForeignBlocks
from headrace.core.router.foreign_feed import ForeignFeed, Hearing
from headrace.errors import ProtocolError
from headrace.monitoring import table
from headrace.monitoring.logging import event as log_event
from headrace.server.gateway.foreign.kv_socket import KvSocket
from headrace.server.gateway.foreign.kv_wire import read_batch
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from headrace.core.router.events import RouterEvent
    from headrace.monitoring.metrics import Metric, Registry
    from headrace.server.gateway.foreign.config import ForeignReplica
    from headrace.server.gateway.foreign.kv_socket import RawBatch

_LOG = logging.getLogger(__name__)


class Socket(Protocol):
    """See KvSocket."""

    def open(self) -> None: ...
    async def next(self) -> RawBatch: ...
    def replay(self, first: int) -> AsyncGenerator[RawBatch]: ...
    def close(self) -> None: ...


class KvFollower:
    """Of one replica. ``ready`` and ``lost`` may come in any order, any number of times."""

    def __init__(self, replica: ForeignReplica, registry: Registry) -> None:
        self.replica = ReplicaId(replica.name)
        self._spec = replica
        self._registry = registry
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._said: set[str] = set()  # troubles that were logged

    def ready(self, feed: Callable[[RouterEvent], None]) -> None:
        """The replica is in a pool, whose Router is to be told."""
        self.lost()
        self._task = asyncio.get_running_loop().create_task(self._run(feed))
        self._task.add_done_callback(_log_fault)

    def lost(self) -> None:
        """It is in none any more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Follow nothing more; return when every socket is closed."""
        self.lost()
        if self._ending:
            await asyncio.wait(self._ending)

    async def _run(self, feed: Callable[[RouterEvent], None]) -> None:
        spec = self._spec
        following = Following(
            ForeignFeed(self.replica, ForeignBlocks(spec.block_size)),
            KvSocket(spec.kv_events, spec.kv_replay),
            feed,
            self._count,
            self._trouble,
        )
        try:
            await following.run(asks=bool(spec.kv_replay))
        except (ProtocolError, OSError) as error:
            self._trouble("its KV events are not followed", str(error), logging.ERROR)

    def _count(self, metric: Metric, what: str, number: int) -> None:
        if number:
            self._registry.add(metric, self.replica, what, amount=number)

    def _trouble(self, what: str, reason: str, level: int = logging.WARNING) -> None:
        """Log a kind of trouble once."""
        if what not in self._said:
            self._said.add(what)
            log_event(_LOG, level, what, replica=self.replica, reason=reason)


class Following:
    """One life of a replica, heard."""

    def __init__(
        self,
        line: ForeignFeed,
        socket: Socket,
        tell: Callable[[RouterEvent], None],
        count: Callable[[Metric, str, int], None],
        trouble: Callable[[str, str], None],
    ) -> None:
        self._line = line
        self._socket = socket
        self._tell = tell
        self._count = count
        self._trouble = trouble

    async def run(self, *, asks: bool) -> None:
        """Follow until cancelled; ``asks`` for what is missed. Raises ProtocolError, OSError."""
        try:
            self._socket.open()
            if asks:
                await self._mend()
            while True:
                await self._take_live(await self._socket.next(), asks=asks)
                await asyncio.sleep(0)  # requests come first, however many batches wait
        finally:
            self._socket.close()

    async def _take_live(self, batch: RawBatch, *, asks: bool) -> None:
        if batch.number is None:
            self._malformed("it sent frames that are no batch of KV events")
            return
        match self._line.hear(batch.number):
            case Hearing.OLD:
                return
            case Hearing.MISSED if asks:
                await self._mend()
            case _:
                pass
        self._take(batch)

    async def _mend(self) -> None:
        """Take what the server still has of what was not heard."""
        try:
            if not await self._replay():  # it is another process
                await self._replay()
        except TimeoutError:
            self._trouble("its KV events are not replayed", "no answer from its kv-replay=")

    async def _replay(self) -> bool:
        """Take a replay; False: it shows another process, and must be asked for anew."""
        line, first = self._line, self._line.asks_from
        is_first = is_proved = line.wanted == 0
        async with aclosing(self._socket.replay(first)) as batches:
            async for batch in batches:
                if batch.number is None:
                    self._malformed("it replayed frames that are no batch of KV events")
                elif not is_proved and not line.is_same(batch.number, _proof(batch.payload)):
                    line.begin_anew()
                    return False
                else:
                    is_proved = True
                    self._take(batch)
                await asyncio.sleep(0)
        if is_proved and not is_first:
            self._count(table.KV_EVENT_GAPS, "replayed", 1)
        return True

    def _take(self, batch: RawBatch) -> None:
        try:
            changes, num_skipped = read_batch(batch.payload)
        except ProtocolError as error:
            self._malformed(str(error))
            return
        line = self._line
        assert batch.number is not None
        if batch.number > line.wanted:
            self._count(table.KV_EVENT_GAPS, "void", 1)
        event = line.take(batch.number, changes, _proof(batch.payload))
        if event is None or line.delta is None:
            return
        self._count(table.KV_EVENTS, "stored", line.delta.num_stored)
        self._count(table.KV_EVENTS, "orphaned", line.delta.num_orphans)
        self._count(table.KV_EVENTS, "skipped", num_skipped)
        self._tell(event)

    def _malformed(self, reason: str) -> None:
        self._count(table.KV_EVENTS, "malformed", 1)
        self._trouble("some of its KV events are malformed", reason)


def _log_fault(task: asyncio.Task[None]) -> None:
    """Say what ended it, if it was a fault of ours: the gateway goes on without its events."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("KV events are not followed any more", exc_info=error)


def _proof(payload: bytes) -> bytes:
    """Two batches with one of these are one batch: each has the time in it."""
    return sha256(payload).digest()
