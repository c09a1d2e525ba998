"""TransferModel: how long blocks take to come from elsewhere, learned from transfers.

Seconds are counted by the block, since all blocks of one engine are equally large; what a
transfer costs beyond its blocks is spread over them. It knows no tiers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.types import Seconds

KEEP = 0.9  # weight of all older transfers at each new one
PRIOR_BLOCKS = 8.0  # what the prior counts for
FORGIVEN = 0.98
"""What is left of an estimate each time that it decided against a transfer: a tier that was slow
for a while is tried again, after some 35 refusals at half its cost."""


ROUND_TRIP = 2e-3
"""Seconds of a fetch from a neighbour: a question, and a turn of the neighbour's loop."""


def fetch_seconds(num_blocks: float, block_seconds: Seconds) -> Seconds:
    """Predict how long it takes until so many blocks of a neighbour are here."""
    return ROUND_TRIP + num_blocks * block_seconds


class TransferModel:
    """The fit for one tier; ``prior`` is the guess for one block."""

    def __init__(self, prior: Seconds) -> None:
        self._num_blocks = PRIOR_BLOCKS
        self._seconds = PRIOR_BLOCKS * prior

    def seconds(self, num_blocks: int) -> Seconds:
        """Predict how long so many blocks take."""
        return num_blocks * self._seconds / self._num_blocks

    def observe(self, num_blocks: int, seconds: Seconds) -> None:
        """Learn that so many blocks took so long."""
        self._num_blocks = KEEP * self._num_blocks + num_blocks
        self._seconds = KEEP * self._seconds + seconds

    def forgive(self) -> None:
        """Note that the estimate decided against a transfer, so nothing was learned."""
        self._seconds *= FORGIVEN
