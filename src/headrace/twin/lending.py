"""Blocks between replicas in virtual time: what a lender holds comes after its bytes' time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.kvcache.tiers import TierConfig
from headrace.core.kvcache.transfers import Tier, TierRead, TransferDone

if TYPE_CHECKING:
    from headrace.core.kvcache.survey import Survey
    from headrace.core.kvcache.transfers import Transfer
    from headrace.executor.base import ExecutorSpec
    from headrace.types import Seconds

TRANSFER_BYTES = 16 << 20
"""Of one transfer, as engines have it."""


class Lending:
    """Who lends what; ``round_trip`` is added to each transfer. 0 bytes a second: nobody."""

    def __init__(self, spec: ExecutorSpec, *, bytes_per_second: float, round_trip: Seconds) -> None:
        self._spec = spec
        self._bytes_per_second = bytes_per_second
        self._round_trip = round_trip
        self._lenders: dict[str, Survey] = {}

    @property
    def block_seconds(self) -> Seconds:
        """What a block takes on its way; 0 if none is ever on one."""
        return self._spec.block_bytes / self._bytes_per_second if self._bytes_per_second else 0.0

    @property
    def config(self) -> TierConfig | None:
        """What cores are told."""
        if not self.block_seconds:
            return None
        return TierConfig(
            transfer_blocks=max(1, TRANSFER_BYTES // self._spec.block_bytes),
            block_seconds={Tier.PEER: self.block_seconds},
        )

    def open(self, address: str, holdings: Survey) -> None:
        """A process of that address lends what it holds; one that was there before is gone."""
        self._lenders[address] = holdings

    def close(self, address: str) -> None:
        """The process is gone."""
        self._lenders.pop(address, None)

    def fetch(self, transfer: Transfer) -> tuple[TransferDone, Seconds]:
        """Return how a transfer that begins now ends, and how long it takes."""
        lender = self._lenders.get(transfer.source)
        num_done = 0 if lender is None else len(lender.held(transfer.digests))
        seconds = self._round_trip + num_done * self.block_seconds
        reads = (TierRead(Tier.PEER, num_done, seconds),) if num_done else ()
        return TransferDone(number=transfer.number, num_done=num_done, reads=reads), seconds
