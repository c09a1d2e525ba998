"""Mover: the thread that copies blocks between the executor and the lower tiers.

Loads go before the rest, since somebody waits for them. What becomes of a transfer is told on the
event loop, what the tiers gained and lost before it. A block that is loaded from disk goes to host
memory too, and a block that is saved goes to every tier there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol, assert_never

import numpy as np

from headrace.core.kvcache.transfers import (
    Direction,
    Tier,
    TierChanged,
    TierEvent,
    TierRead,
    Transfer,
    TransferDone,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from headrace.clock import Clock
    from headrace.server.kv_tiers.disk import DiskTier
    from headrace.server.kv_tiers.host import HostTier
    from headrace.types import BlockId, Seconds

POLL_SECONDS = 5.0
"""No wait of the thread is longer, so that it ends even if nobody stopped it."""

JOIN_SECONDS = 3.0
"""A thread that still copies then is left to die with the process."""

TURN_SECONDS = 0.02
QUIET_TURNS = 3
"""So often nothing must be under way until it is believed that nothing follows."""

_END = len(Direction)  # after every Direction

_log = logging.getLogger(__name__)


class DeviceBlocks(Protocol):
    """The part of Executor that is used here, from a thread of its own."""

    def read_blocks(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        """Return copies of whole blocks, [len(blocks), block_bytes]."""
        ...

    def write_blocks(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        """Overwrite whole blocks."""
        ...


class _Order(NamedTuple):
    """What is next: by urgency (a Direction or the end), then in order."""

    urgency: int
    number: int
    transfer: Transfer | None


class Mover:
    """Carries out transfers. ``tell`` is called on the loop that called ``start``."""

    def __init__(
        self,
        host: HostTier | None,
        disk: DiskTier | None,
        *,
        clock: Clock,
        tell: Callable[[TierEvent], None],
    ) -> None:
        self._host = host
        self._disk = disk
        self._clock = clock
        self._tell = tell
        self._orders: queue.PriorityQueue[_Order] = queue.PriorityQueue()  # bounded by the core
        self._thread: threading.Thread | None = None
        self._copies: dict[bytes, npt.NDArray[np.uint8]] = {}  # of the last READ
        self._num_pending = 0  # seen from the loop
        self._num_told = (0, 0)  # quarantined blocks and errors of the disk

    def start(self, device: DeviceBlocks, block_bytes: int) -> None:
        """Begin: first to find what is on the disk."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._run, args=(loop, device, block_bytes), name="kv-tiers", daemon=True
        )
        self._thread.start()

    def submit(self, transfer: Transfer) -> None:
        """Hand over a transfer."""
        self._num_pending += 1
        self._orders.put(_Order(transfer.direction, transfer.number, transfer))

    async def settle(self, seconds: Seconds) -> None:
        """Wait until no transfer follows another, for so long at most."""
        num_quiet = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while num_quiet < QUIET_TURNS:
                    await asyncio.sleep(TURN_SECONDS)
                    num_quiet = 0 if self._num_pending else num_quiet + 1

    async def stop(self) -> None:
        """End after what was handed over; give up on a disk that hangs."""
        if self._thread is not None:
            self._orders.put(_Order(_END, 0, None))
            await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    def _run(self, loop: asyncio.AbstractEventLoop, device: DeviceBlocks, block_bytes: int) -> None:
        def tell(event: TierEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(self._pass_on, event)

        try:
            self._find(tell)
            while (transfer := self._next(loop)) is not None:
                for event in self._carry_out(transfer, device, block_bytes):
                    tell(event)
        finally:
            if self._disk is not None:
                self._disk.close()

    def _pass_on(self, event: TierEvent) -> None:
        if isinstance(event, TransferDone):
            self._num_pending -= 1
        self._tell(event)

    def _find(self, tell: Callable[[TierEvent], None]) -> None:
        """Tell what is on the disk; do without a disk that cannot be used."""
        if self._disk is None:
            return
        try:
            for digests in self._disk.open():
                tell(self._disk_change(stored=digests))
        except OSError as error:
            _log.warning("the KV cache has no disk tier: %s", error)
            self._disk.close()
            self._disk = None
            tell(TierChanged(tier=Tier.DISK, errors=1))

    def _next(self, loop: asyncio.AbstractEventLoop) -> Transfer | None:
        while not loop.is_closed():
            with contextlib.suppress(queue.Empty):
                return self._orders.get(timeout=POLL_SECONDS).transfer
        return None

    def _carry_out(
        self, transfer: Transfer, device: DeviceBlocks, block_bytes: int
    ) -> list[TierEvent]:
        """Return what is to be told. Whatever happens, the transfer has an end."""
        try:
            match transfer.direction:
                case Direction.LOAD:
                    return self._load(transfer, device, block_bytes)
                case Direction.READ:
                    return self._copy(transfer, device)
                case Direction.STORE:
                    return self._store(transfer)
                case _:
                    assert_never(transfer.direction)
        except Exception:  # a bug; the outermost boundary round a transfer
            _log.exception("transfer %d of KV blocks failed", transfer.number)
            return [TransferDone(number=transfer.number, num_done=0)]

    def _copy(self, transfer: Transfer, device: DeviceBlocks) -> list[TierEvent]:
        content = device.read_blocks(transfer.blocks)
        self._copies = dict(zip(transfer.digests, content, strict=True))
        return [TransferDone(number=transfer.number, num_done=len(content))]

    def _store(self, transfer: Transfer) -> list[TierEvent]:
        copies, self._copies = self._copies, {}
        on_host, on_disk = _Change(), _Change()
        num_done = 0
        for digest in transfer.digests:
            block = copies[digest]
            kept = self._keep_on_host(digest, block, on_host)
            if self._disk is not None and (gone := self._disk.put(digest, block)) is not None:
                on_disk.note(digest, gone)
                kept = True
            num_done += kept
        done = TransferDone(number=transfer.number, num_done=num_done)
        return [*self._changes(on_host, on_disk), done]

    def _load(self, transfer: Transfer, device: DeviceBlocks, block_bytes: int) -> list[TierEvent]:
        """Read blocks up to the first that no tier has (any more), then write them."""
        content = np.empty((len(transfer.blocks), block_bytes), np.uint8)
        on_host = _Change()
        reads = {tier: _Read() for tier in Tier}
        num_done = 0
        for digest, block in zip(transfer.digests, content, strict=True):
            began = self._clock.now()
            tier = self._read(digest, block, on_host)
            if tier is None:
                break
            reads[tier].num_blocks += 1
            reads[tier].seconds += self._clock.now() - began
            num_done += 1
        began = self._clock.now()
        device.write_blocks(transfer.blocks[:num_done], content[:num_done])
        each = (self._clock.now() - began) / max(1, num_done)
        done = TransferDone(
            number=transfer.number,
            num_done=num_done,
            reads=tuple(
                TierRead(tier, read.num_blocks, read.seconds + each * read.num_blocks)
                for tier, read in reads.items()
                if read.num_blocks
            ),
        )
        return [*self._changes(on_host, _Change()), done]

    def _read(self, digest: bytes, block: npt.NDArray[np.uint8], on_host: _Change) -> Tier | None:
        if self._host is not None and self._host.read_into(digest, block):
            return Tier.HOST
        if self._disk is not None and self._disk.read_into(digest, block):
            self._keep_on_host(digest, block, on_host)
            return Tier.DISK
        return None

    def _keep_on_host(self, digest: bytes, block: npt.NDArray[np.uint8], change: _Change) -> bool:
        if self._host is None:
            return False
        gone = self._host.put(digest, block)
        change.note(digest, () if gone is None else (gone,))
        return True

    def _changes(self, on_host: _Change, on_disk: _Change) -> list[TierEvent]:
        changes: list[TierEvent] = []
        if self._host is not None:
            stored, dropped = on_host.told()
            changes.append(
                TierChanged(
                    tier=Tier.HOST,
                    stored=stored,
                    dropped=dropped,
                    used_bytes=self._host.used_bytes,
                )
            )
        if self._disk is not None:
            stored, dropped = on_disk.told()
            changes.append(self._disk_change(stored=stored, dropped=dropped))
        return changes

    def _disk_change(
        self, *, stored: tuple[bytes, ...] = (), dropped: tuple[bytes, ...] = ()
    ) -> TierChanged:
        assert self._disk is not None
        quarantined, errors = self._num_told
        self._num_told = (self._disk.num_quarantined, self._disk.num_errors)
        return TierChanged(
            tier=Tier.DISK,
            stored=stored,
            dropped=dropped,
            used_bytes=self._disk.used_bytes,
            quarantined=self._disk.num_quarantined - quarantined,
            errors=self._disk.num_errors - errors,
        )


class _Read:
    """Blocks read from one tier, and how long that took."""

    def __init__(self) -> None:
        self.num_blocks = 0
        self.seconds: Seconds = 0.0


class _Change:
    """What a tier gained and lost within a transfer, in the end."""

    def __init__(self) -> None:
        self._is_there: dict[bytes, bool] = {}

    def note(self, stored: bytes, dropped: Sequence[bytes]) -> None:
        """A block was stored, and others went for it."""
        self._is_there |= dict.fromkeys(dropped, False) | {stored: True}

    def told(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Return what was stored and what was dropped."""
        stored = tuple(digest for digest, there in self._is_there.items() if there)
        dropped = tuple(digest for digest, there in self._is_there.items() if not there)
        return stored, dropped
