"""Lender: lets other engines copy blocks of this one's device.

Blocks stay where they are, free or in use, and their place in the order of eviction: nothing is
pinned, so a borrower that hangs or dies holds nothing here. The loop says where content lies; a
thread copies a chunk; the loop says how much of it was never evicted meanwhile, and only that is
sent. What has gone is a miss for the borrower.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from headrace.errors import ProtocolError
from headrace.server.address import bind_unix
from headrace.server.kv_peers import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from headrace.core.kvcache.prefix import Content
    from headrace.server.kv_tiers.segment import BlockFormat
    from headrace.types import BlockId, Seconds

CHUNK_BYTES = 1 << 20
"""Copied at one time for one borrower: bounds memory, and what is copied for nothing."""

MAX_BORROWERS = 16
"""Connections; one more is closed at once."""

IDLE_SECONDS: Seconds = 60.0
"""A borrower that asks nothing for so long is disconnected; it may come again."""

STALL_SECONDS: Seconds = 5.0
"""The same for one that does not read what it asked for."""

LOOK_SECONDS: Seconds = 5.0
"""For the loop to say what is where."""

JOIN_SECONDS: Seconds = 2.0

T = TypeVar("T")

_log = logging.getLogger(__name__)


class ReadsBlocks(Protocol):
    """The part of Executor that is used here, from threads of its own."""

    def read_blocks(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        """Return copies of whole blocks, [len(blocks), block_bytes]."""
        ...


class Holdings(Protocol):
    """What lies where, asked on the loop. ``Survey`` of core/kvcache is one."""

    def held(self, digests: Iterable[bytes]) -> list[tuple[BlockId, Content]]:
        """Return the blocks with these contents, up to the first that is not here."""
        ...

    def num_still(self, held: Iterable[tuple[BlockId, Content]]) -> int:
        """Return how many of the first ones hold the same, never evicted meanwhile."""
        ...


class Lender:
    """Answers other engines on a Unix socket; to be made on the loop that owns ``holdings``."""

    def __init__(self, holdings: Holdings, device: ReadsBlocks, form: BlockFormat) -> None:
        self._holdings = holdings
        self._device = device
        self._form = form
        self._chunk = max(1, CHUNK_BYTES // max(1, form.block_bytes))
        self._loop = asyncio.get_running_loop()
        self._listening: socket.socket | None = None
        self._path: Path | None = None
        self._borrowers: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_closed = threading.Event()

    def start(self, path: Path) -> None:
        """Listen on a new socket at ``path`` that only this user may open."""
        self._path = path
        self._listening = bind_unix(path)
        self._listening.setblocking(False)
        self._loop.add_reader(self._listening, self._accept, self._listening)

    async def stop(self) -> None:
        """Break off what is under way, and end."""
        self._is_closed.set()
        if self._listening is not None and self._path is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._path.unlink(missing_ok=True)
        for peer in tuple(self._borrowers):
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _accept(self, listening: socket.socket) -> None:
        try:
            peer, _ = listening.accept()
        except OSError:  # it has gone again, or there is no room for it
            return
        if len(self._borrowers) >= MAX_BORROWERS:
            peer.close()
            return
        self._borrowers.add(peer)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._serve, args=(peer,), name="kv-lender", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, peer: socket.socket) -> None:
        """Answer one borrower until it goes."""
        with peer:
            try:
                peer.settimeout(STALL_SECONDS)
                wire.greet(peer, self._form)
                while not self._is_closed.is_set():
                    peer.settimeout(IDLE_SECONDS)
                    digests = wire.receive_question(peer)
                    peer.settimeout(STALL_SECONDS)
                    self._answer(peer, digests)
            except ProtocolError as error:
                _log.warning("a borrower of blocks is disconnected: %s", error)
            except OSError:  # it has gone, hangs, or has nothing more to ask
                pass
            except Exception:  # the outermost boundary round one borrower
                _log.exception("lending blocks failed")
            finally:
                self._borrowers.discard(peer)

    def _answer(self, peer: socket.socket, digests: Sequence[bytes]) -> None:
        held = self._on_loop(partial(self._holdings.held, digests))
        for start in range(0, len(held), self._chunk):
            part = held[start : start + self._chunk]
            copies = self._device.read_blocks([block for block, _ in part])
            num_sound = self._on_loop(partial(self._holdings.num_still, part))
            for (_, content), copy in zip(part[:num_sound], copies, strict=False):
                wire.send_block(peer, self._form, content.digest, np.ascontiguousarray(copy).data)
            if num_sound < len(part):
                wire.send_end(peer)
                return
        if len(held) < len(digests):
            wire.send_end(peer)

    def _on_loop(self, look: Callable[[], T]) -> T:
        """Return what ``look`` says on the loop. Raises TimeoutError, which is an OSError."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(look())
            except Exception as error:  # it is the thread's
                future.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(run)
        except RuntimeError as error:  # the loop has been closed meanwhile
            raise ConnectionError("the engine ends") from error
        return future.result(LOOK_SECONDS)
