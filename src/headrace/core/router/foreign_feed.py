"""A foreign server's numbered batches of changes, as the Router takes changes of replicas.

::

    heard live:   next -> taken          already replayed -> nothing
                  later, a gap           -> asked for again; if that fails, what was known is void
                  not later than before  -> it started anew: void, names included

Batches are numbered from 0 by the server, changes for the Router from 1 in each *epoch*. Where a
gap cannot be mended, a new epoch begins in its middle: the Router takes what it knew for void and
knows that something is missing (DEGRADED), until the server clears its cache or starts anew.
A restart that is not seen as one (the connection was lost for so long that the new process has
counted further) is found out by ``proof``: the batch heard last must be what it was.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from headrace.core.router.events import KvListed, KvReported
from headrace.core.router.foreign_blocks import AllCleared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.router.foreign_blocks import Delta, ForeignBlocks, ForeignChange
    from headrace.types import ReplicaId


class Hearing(Enum):
    """What the number of a batch means."""

    OLD = "old"  # it is known already
    NEXT = "next"
    MISSED = "missed"  # there are some before it that were not heard


class ForeignFeed:
    """Follows one replica's batches. ``wanted`` is the number of the next."""

    def __init__(self, replica: ReplicaId, blocks: ForeignBlocks) -> None:
        self.wanted = 0
        self.delta: Delta | None = None  # of the last batch
        self._replica = replica
        self._blocks = blocks
        self._epoch = 1
        self._live: int | None = None  # the number heard last, not by replay
        self._proof = b""  # of batch ``wanted`` - 1

    @property
    def asks_from(self) -> int:
        """Where to begin a replay: with the batch heard last, which must be what it was."""
        return max(0, self.wanted - 1)

    def hear(self, number: int) -> Hearing:
        """Take the number of a live batch. After OLD and before a MISSED is mended, take none."""
        if self._live is not None and number <= self._live:
            self.begin_anew()
        self._live = number
        if number < self.wanted:
            return Hearing.OLD
        return Hearing.NEXT if number == self.wanted else Hearing.MISSED

    def is_same(self, number: int, proof: bytes) -> bool:
        """Whether the first batch of a replay shows that the server is the process it was."""
        return not self.wanted or (number == self.wanted - 1 and proof == self._proof)

    def begin_anew(self) -> None:
        """It is another process."""
        self._blocks.forget()
        self._epoch += 1
        self.wanted = 0

    def take(
        self, number: int, changes: Sequence[ForeignChange], proof: bytes = b""
    ) -> KvReported | KvListed | None:
        """Take a batch, live or replayed, with a digest of it; None: it is known already.

        Raises ProtocolError for blocks that do not fit our unit.
        """
        if number < self.wanted:
            return None
        if number > self.wanted:
            self._blocks.doubt()
            self._epoch += 1
        self.wanted, self._proof = number + 1, proof
        delta = self.delta = self._blocks.apply(changes)
        if any(isinstance(change, AllCleared) for change in changes):
            return KvListed(self._replica, number + 1, self._blocks.held, self._epoch)
        return KvReported(self._replica, number + 1, delta.stored, delta.removed, self._epoch)
