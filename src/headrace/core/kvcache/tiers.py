"""The door to lower tiers: which blocks go down to host memory and disk, and which come back up.

It knows lower tiers by the digests in them; the bytes are the shell's. Both ways are off the
step's critical path, and a tier that fails is a miss:

* **Saves** work as a page cache's write-back does. Content is dirty until it was saved; when few
  blocks without content are left (or the engine is idle, with a tier that outlives it) the blocks
  that go next are saved ahead of need, a bounded number at a time (saving.py).
* **Loads** are begun for requests that are about to be scheduled, from the moment they are
  queued: for the run of blocks that the device lacks and a lower tier has, if fetching it is
  predicted to take less time than computing it. A load is a block table of nobody's: it announces
  its content as *coming*, and a sequence that wants it waits as it would for another sequence.

Nothing waits for ever: a block is fetched at most once for a sequence (each run is decided on
once), and a load that takes far longer than predicted is given up: its content is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.types import TierFigures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.core.kvcache.table import BlockTable
    from headrace.core.kvcache.transfers import Tier, TierEvent, Transfer
    from headrace.types import Seconds, Tokens


MIN_SHARE = 8
"""A transfer takes one of so many parts of all blocks at most; three may be under way."""


class RecomputeCosts(Protocol):
    """Predicts what it takes to compute again. ``StepModel`` is one."""

    def recompute_seconds(self, num_tokens: Tokens, start: Tokens) -> Seconds:
        """Return what ``num_tokens`` from position ``start`` add to steps."""
        ...


class Line(Protocol):
    """What must be known of a scheduler. ``Lookahead`` is one."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        ...

    def first_in_line(self, count: int) -> Sequence[BlockTable]:
        """Return the tables of the sequences that wait and are next, without blocks yet."""
        ...

    def num_spare(self) -> int:
        """Return how many free blocks are promised to nobody."""
        ...


class Tiers(Protocol):
    """What an engine's core asks of its lower tiers."""

    @property
    def is_busy(self) -> bool:
        """Whether a TransferDone will come."""
        ...

    def note(self, event: TierEvent, now: Seconds) -> None:
        """Learn what a tier gained and lost; publish what was loaded, let go of what was saved."""
        ...

    def saving(self, table: BlockTable) -> Seconds:
        """Predict how much sooner a table's tokens are there because some of them are fetched."""
        ...

    def fetch(self, now: Seconds) -> list[Transfer]:
        """Return the loads that begin now; to be called before a step is planned."""
        ...

    def save(self, now: Seconds) -> list[Transfer]:
        """Return the saves that begin now; to be called after a step was planned."""
        ...

    def next_wakeup(self) -> Seconds | None:
        """Return when the next load is to be given up."""
        ...

    def tables(self) -> list[BlockTable]:
        """Return the tables whose blocks are held by transfers, for the ledger."""
        ...

    def figures(self) -> TierFigures:
        """Return what operators want to know."""
        ...


class NoTiers:
    """Implements Tiers where there are none."""

    is_busy = False

    def note(self, event: TierEvent, now: Seconds) -> None:
        """There is nothing that could change."""

    def saving(self, table: BlockTable) -> Seconds:
        """Return nothing."""
        return 0.0

    def fetch(self, now: Seconds) -> list[Transfer]:
        """Return nothing."""
        return []

    def save(self, now: Seconds) -> list[Transfer]:
        """Return nothing."""
        return []

    def next_wakeup(self) -> None:
        """Never."""

    def tables(self) -> list[BlockTable]:
        """Return nothing."""
        return []

    def figures(self) -> TierFigures:
        """Return zeros."""
        return TierFigures()


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """What the core is told of its lower tiers."""

    transfer_blocks: int
    """Blocks of one transfer at most, 1 or more: bounds memory, and what waits for one."""
    block_seconds: Mapping[Tier, Seconds]
    """First guess of what a block takes to come, for each tier there is. With PEER, blocks are
    fetched from the neighbours that requests name."""
    outlives: bool = False
    """A tier is still there after a restart, so that saving while idle is of use."""

    def within(self, num_blocks: int) -> int:
        """Return ``transfer_blocks``, or less, so that transfers never hold most of all blocks."""
        return max(1, min(self.transfer_blocks, num_blocks // MIN_SHARE))
