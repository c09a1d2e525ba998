"""TierStore: one lower tier in memory and a neighbour, whose transfers end when a test says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.core.kvcache.transfers import (
    Direction,
    Tier,
    TierChanged,
    TierRead,
    Transfer,
    TransferDone,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from headrace.core.kvcache.transfers import TierEvent
    from headrace.executor.base import Executor
    from headrace.types import Seconds


class TierStore:
    """Moves blocks of ``executor`` at the last moment; blocks to be loaded hold rubbish until then.

    ``block_seconds`` is what a block is said to have taken. ``lent`` is what the neighbour has,
    whoever names one.
    """

    def __init__(self, executor: Executor, *, block_seconds: Seconds = 1e-4) -> None:
        self.block_seconds = block_seconds
        self.contents: dict[bytes, npt.NDArray[np.uint8]] = {}
        self.lent: dict[bytes, npt.NDArray[np.uint8]] = {}
        self.pending: list[Transfer] = []
        self.begun: list[Transfer] = []
        self.executor = executor
        self._copies: dict[bytes, npt.NDArray[np.uint8]] = {}

    def begin(self, transfer: Transfer) -> None:
        """Take a transfer; it is pending."""
        self.begun.append(transfer)
        self.pending.append(transfer)
        if transfer.direction is Direction.LOAD:
            shape = (len(transfer.blocks), self.executor.spec.block_bytes)
            self.executor.write_blocks(transfer.blocks, np.full(shape, 0xEE, np.uint8))

    def finish(self, index: int = 0, *, limit: int | None = None) -> tuple[TierEvent, ...]:
        """End a pending transfer after ``limit`` of its blocks; return what the core is told."""
        transfer = self.pending.pop(index)
        count = len(transfer.digests) if limit is None else min(limit, len(transfer.digests))
        if transfer.source:
            return (self._read(transfer, count, self.lent, Tier.PEER),)
        used_bytes = len(self.contents) * self.executor.spec.block_bytes
        if transfer.direction is Direction.LOAD:
            done = self._read(transfer, count, self.contents, Tier.HOST)
            return TierChanged(tier=Tier.HOST, used_bytes=used_bytes), done
        return self._save(transfer, count)

    def lose(self, digest: bytes) -> TierChanged:
        """Drop a block; return what the core is told, now or later."""
        del self.contents[digest]
        return TierChanged(tier=Tier.HOST, dropped=(digest,))

    def _save(self, transfer: Transfer, count: int) -> tuple[TierChanged, TransferDone]:
        digests = transfer.digests[:count]
        if transfer.direction is Direction.READ:
            content = self.executor.read_blocks(transfer.blocks[:count])
            self._copies = dict(zip(digests, content, strict=True))
            digests = ()
        self.contents |= {digest: self._copies[digest] for digest in digests}
        change = TierChanged(
            tier=Tier.HOST,
            stored=digests,
            used_bytes=len(self.contents) * self.executor.spec.block_bytes,
        )
        return change, TransferDone(number=transfer.number, num_done=count)

    def _read(
        self,
        transfer: Transfer,
        count: int,
        held: dict[bytes, npt.NDArray[np.uint8]],
        tier: Tier,
    ) -> TransferDone:
        count = next(
            (i for i, digest in enumerate(transfer.digests[:count]) if digest not in held), count
        )
        content = [held[digest] for digest in transfer.digests[:count]]
        if content:
            self.executor.write_blocks(transfer.blocks[:count], np.array(content))
        reads = (TierRead(tier, count, count * self.block_seconds),) if count else ()
        return TransferDone(number=transfer.number, num_done=count, reads=reads)
