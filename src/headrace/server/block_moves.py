"""BlockMoves: all that moves blocks of one engine, as far as its settings want it.

A mover between the device and lower tiers, a borrower that fetches from other replicas, and a
lender that serves theirs. All of them are threads beside the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.server.kv_peers.borrower import Borrower
from headrace.server.kv_peers.lender import Lender
from headrace.server.kv_tiers.build import block_format, build_mover
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.clock import Clock
    from headrace.core.kvcache.transfers import TierEvent, Transfer
    from headrace.executor.base import Executor
    from headrace.server.kv_peers.lender import Holdings
    from headrace.server.kv_tiers.mover import Mover
    from headrace.server.settings import EngineProcess
    from headrace.types import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMoves:
    """The parts that there are."""

    mover: Mover | None = None
    borrower: Borrower | None = None
    lender: Lender | None = None

    def submit(self, transfer: Transfer) -> None:
        """Hand over a transfer of the core, which knows what there is."""
        carrier = self.borrower if transfer.source else self.mover
        assert carrier is not None
        carrier.submit(transfer)

    async def settle(self, seconds: Seconds) -> None:
        """Let what is worth keeping reach lower tiers, for so long."""
        if self.mover is not None:
            await self.mover.settle(seconds)

    async def stop(self) -> None:
        """End all; before the executor ends, whose blocks they copy."""
        for part in (self.mover, self.lender, self.borrower):
            if part is not None:
                await part.stop()


def lending_path(process: EngineProcess) -> Path | None:
    """Return where an engine lends blocks, None if it does not."""
    return Path(process.socket).with_suffix(".kv") if process.engine.kv_transfer else None


def start_block_moves(
    process: EngineProcess,
    executor: Executor,
    *,
    holdings: Holdings,
    clock: Clock,
    tell: Callable[[TierEvent], None],
) -> BlockMoves:
    """Start what the settings want. Raises UsageError if the place to lend at is taken."""
    spec, settings = executor.spec, process.engine
    replica = ReplicaId(process.replica)
    mover = build_mover(settings, spec, replica=replica, clock=clock, tell=tell)
    if mover is not None:
        mover.start(executor, spec.block_bytes)
    path = lending_path(process)
    if path is None:
        return BlockMoves(mover=mover)
    form = block_format(spec)
    lender = Lender(holdings, executor, form)
    lender.start(path)
    borrower = Borrower(executor, form, clock=clock, tell=tell)
    borrower.start()
    return BlockMoves(mover=mover, borrower=borrower, lender=lender)
