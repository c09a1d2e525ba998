"""Borrower: the thread that fetches blocks from other engines.

A neighbour that is gone, hangs, has something else or sends rubbish is a miss: a transfer ends with
the blocks that came before, every one with a right checksum. It is then left alone for a while, so
that one bad neighbour costs one wait and not one for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import socket
import threading
from typing import TYPE_CHECKING, Protocol

import numpy as np

from headrace.core.kvcache.transfers import Tier, TierRead, TransferDone
from headrace.errors import ProtocolError
from headrace.server.kv_peers import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from headrace.clock import Clock
    from headrace.core.kvcache.transfers import TierEvent, Transfer
    from headrace.server.kv_tiers.segment import BlockFormat
    from headrace.types import BlockId, Seconds

CONNECT_SECONDS: Seconds = 0.5
SILENCE_SECONDS: Seconds = 1.0
"""Without a byte of what was asked for: the neighbour hangs."""

AVOID_SECONDS: Seconds = 10.0
"""A neighbour that failed is not asked for so long."""

TRANSFER_SECONDS: Seconds = 5.0
"""For all blocks of a transfer: one that drips hangs too."""

MAX_CONNECTIONS = 16
POLL_SECONDS: Seconds = 5.0
JOIN_SECONDS: Seconds = 3.0

_log = logging.getLogger(__name__)


class WritesBlocks(Protocol):
    """The part of Executor that is used here, from a thread of its own."""

    def write_blocks(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        """Overwrite whole blocks."""
        ...


class Borrower:
    """Carries out loads from neighbours, one at a time; ``tell`` is called on ``start``'s loop.

    One connection to each neighbour, opened when it is needed.
    """

    def __init__(
        self,
        device: WritesBlocks,
        form: BlockFormat,
        *,
        clock: Clock,
        tell: Callable[[TierEvent], None],
    ) -> None:
        self._device = device
        self._form = form
        self._clock = clock
        self._tell = tell
        self._orders: queue.SimpleQueue[Transfer | None] = queue.SimpleQueue()  # bounded by core
        self._connections: dict[str, socket.socket] = {}  # by address, the latest used last
        self._avoided: dict[str, Seconds] = {}  # until then
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to wait for transfers."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._run, args=(loop,), name="kv-borrower", daemon=True
        )
        self._thread.start()

    def submit(self, transfer: Transfer) -> None:
        """Hand over a load."""
        self._orders.put(transfer)

    async def stop(self) -> None:
        """End after what is under way, which neighbours cannot drag out for long."""
        self._orders.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while (transfer := self._next(loop)) is not None:
                try:
                    done = self._carry_out(transfer)
                except Exception:  # a bug; the outermost boundary round a transfer
                    _log.exception("transfer %d of KV blocks failed", transfer.number)
                    self._disconnect(transfer.source)
                    done = TransferDone(number=transfer.number, num_done=0)
                with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                    loop.call_soon_threadsafe(self._tell, done)
        finally:
            for address in list(self._connections):
                self._disconnect(address)

    def _next(self, loop: asyncio.AbstractEventLoop) -> Transfer | None:
        while not loop.is_closed():
            with contextlib.suppress(queue.Empty):
                return self._orders.get(timeout=POLL_SECONDS)
        return None

    def _carry_out(self, transfer: Transfer) -> TransferDone:
        """Write what comes, and return how it ended."""
        address, began = transfer.source, self._clock.now()
        if self._avoided.get(address, began) > began:
            return TransferDone(number=transfer.number, num_done=0)
        shape = (len(transfer.blocks), self._form.block_bytes)
        content, num_done = np.empty(shape, np.uint8), 0
        try:
            peer = self._asked(address, transfer.digests, began)
            for digest, block in zip(transfer.digests, content, strict=True):
                if not wire.receive_block(peer, self._form, digest, block.data):
                    break
                num_done += 1
        except (OSError, ProtocolError) as error:
            self._avoid(address, f"{error}" or type(error).__name__)
        if not num_done:
            return TransferDone(number=transfer.number, num_done=0)
        self._device.write_blocks(transfer.blocks[:num_done], content[:num_done])
        read = TierRead(Tier.PEER, num_done, self._clock.now() - began)
        return TransferDone(number=transfer.number, num_done=num_done, reads=(read,))

    def _asked(self, address: str, digests: Sequence[bytes], began: Seconds) -> _Hurried:
        """Return a connection on which the blocks were asked for.

        One that was idle may have been closed by the other end: a fresh one is tried then.
        """
        known = self._connections.pop(address, None)
        if known is not None:
            self._connections[address] = known
            if _is_open(known):
                peer = _Hurried(known, self._clock, began)
                wire.ask(peer, digests)
                return peer
            self._disconnect(address)
        peer = _Hurried(self._connected(address), self._clock, began)
        wire.greet(peer, self._form)
        wire.ask(peer, digests)
        return peer

    def _connected(self, address: str) -> socket.socket:
        while len(self._connections) >= MAX_CONNECTIONS:
            self._disconnect(next(iter(self._connections)))
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connections[address] = peer
        peer.settimeout(CONNECT_SECONDS)
        peer.connect(address)
        peer.settimeout(SILENCE_SECONDS)
        return peer

    def _avoid(self, address: str, reason: str) -> None:
        self._disconnect(address)
        now = self._clock.now()
        self._avoided = {each: until for each, until in self._avoided.items() if until > now}
        self._avoided[address] = now + AVOID_SECONDS
        _log.warning(
            "no blocks from the neighbour at %s for %g s: %s", address, AVOID_SECONDS, reason
        )

    def _disconnect(self, address: str) -> None:
        peer = self._connections.pop(address, None)
        if peer is not None:
            peer.close()


class _Hurried:
    """A connection on which a transfer that began then must come to its end in time."""

    def __init__(self, peer: socket.socket, clock: Clock, began: Seconds) -> None:
        self.sendall = peer.sendall
        self._peer = peer
        self._clock = clock
        self._until = began + TRANSFER_SECONDS

    def recv_into(self, target: memoryview, /) -> int:
        """See wire.Peer."""
        if self._clock.now() > self._until:
            raise TimeoutError(f"a transfer takes more than {TRANSFER_SECONDS:g} s")
        return self._peer.recv_into(target)


def _is_open(peer: socket.socket) -> bool:
    """Whether the other end has neither closed a connection nor said something unasked."""
    peer.setblocking(False)
    try:
        peer.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        peer.settimeout(SILENCE_SECONDS)
    return False
