"""BlockLedger: who holds which block, kept beside the pool's own count of references.

Double entry: the pool counts free blocks, the ledger those that somebody holds. So an error in
either shows at once, and by a comparison of four numbers::

    free            in the pool, may be handed out
    + held          in at least one table
    + in flight     in no table any more, but behind a fence
    + quarantined   held by nobody who is known, or by too many: never handed out again
    == total

A block that is quarantined has one reference that nobody gives back; that is all there is to it. So
one that is still in somebody's table counts as held until it is not.

Every operation is O(1). It knows no tables, no steps and no content: ``audit`` is told who ought to
hold what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import InvariantBroken
from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.core.kvcache.blocks import BlockPool


class Misfit(NamedTuple):
    """A block whose books were wrong. ``is_unsafe``: others may have written into it meanwhile."""

    block: BlockId
    is_unsafe: bool


class BlockLedger:
    """All changes of references go through here. ``num_entries`` counts the places in tables."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._held = [0] * pool.num_blocks
        self._fenced = [0] * pool.num_blocks
        self._quarantined: set[BlockId] = set()
        self._suspects: set[BlockId] = set()  # given back by who did not hold them
        self.num_held = 0
        self.num_in_flight = 0
        self.num_entries = 0
        self._num_withheld = 0  # quarantined, and held by nobody else

    @property
    def num_usable(self) -> int:
        """Blocks that are in circulation: all but those quarantined."""
        return self._pool.num_blocks - len(self._quarantined)

    @property
    def num_quarantined(self) -> int:
        """Blocks that are out of circulation, those still in a table included."""
        return len(self._quarantined)

    @property
    def is_balanced(self) -> bool:
        """Whether every block is accounted for, as far as sums tell."""
        known = self.num_held + self.num_in_flight + self._num_withheld
        return self._pool.num_free + known == self._pool.num_blocks and not self._suspects

    def is_sound(self, block: BlockId) -> bool:
        """Whether a block is not quarantined."""
        return block not in self._quarantined

    def references(self, block: BlockId) -> int:
        """Return how many references a block ought to have."""
        return self._held[block] + self._fenced[block] + (block in self._quarantined)

    def take(self) -> BlockId:
        """Hand out a free block for a table. The caller has looked at ``num_free``."""
        block = self._pool.take()
        self._move(block, held=1)
        return block

    def share(self, block: BlockId) -> None:
        """Put a block that has content into one more table."""
        self._pool.share(block)
        self._move(block, held=1)

    def fence(self, block: BlockId) -> None:
        """Move a block from a table behind a fence."""
        if self._held[block]:
            self._move(block, held=-1, fenced=1)
        else:
            self._suspects.add(block)

    def give_back(self, block: BlockId, *, keep: bool) -> None:
        """Take a block out of a table. ``keep``: its content is worth keeping."""
        if self._held[block]:
            self._move(block, held=-1)
            self._leave(block, keep=keep)
        else:
            self._suspects.add(block)

    def open(self, block: BlockId, *, keep: bool) -> None:
        """Let a block out from behind one fence."""
        if self._fenced[block]:
            self._move(block, fenced=-1)
            self._leave(block, keep=keep)
        else:
            self._suspects.add(block)

    def audit(self, held: Mapping[BlockId, int], fenced: Mapping[BlockId, int]) -> list[Misfit]:
        """Compare every block with who holds it in truth; quarantine those that do not fit. O(n).

        Afterwards the books are those of ``held`` and ``fenced``, and balanced.
        """
        misfits: list[Misfit] = []
        pool = self._pool
        for block in map(BlockId, range(pool.num_blocks)):
            wanted = held.get(block, 0) + fenced.get(block, 0) + (block in self._quarantined)
            fits = self._held[block] == held.get(block, 0)
            fits = fits and self._fenced[block] == fenced.get(block, 0)
            if fits and pool.references(block) == wanted and block not in self._suspects:
                continue
            misfits.append(Misfit(block, is_unsafe=pool.references(block) < wanted))
            self._held[block], self._fenced[block] = held.get(block, 0), fenced.get(block, 0)
            self._quarantine(block)
        self._suspects.clear()
        self._count()
        return misfits

    def check_integrity(self, held: Mapping[BlockId, int], fenced: Mapping[BlockId, int]) -> None:
        """Raise InvariantBroken unless ledger, pool and those who hold blocks agree."""
        sums = self._sums()
        self._count()
        if sums != self._sums():
            raise InvariantBroken(f"the ledger's sums are {sums}, its entries say {self._sums()}")
        for block in map(BlockId, range(self._pool.num_blocks)):
            entries = (self._held[block], self._fenced[block])
            holders = (held.get(block, 0), fenced.get(block, 0))
            references = self._pool.references(block)
            if entries != holders or references != self.references(block):
                raise InvariantBroken(
                    f"block {block}: {references} references, {entries[0]} + {entries[1]} in the "
                    f"ledger, {holders[0]} in tables + {holders[1]} in fences"
                )
        if not self.is_balanced:
            raise InvariantBroken(
                f"{self._pool.num_free} free + {self.num_held} held + {self.num_in_flight} in "
                f"flight + {self._num_withheld} quarantined != {self._pool.num_blocks} blocks"
            )

    def _sums(self) -> tuple[int, int, int, int]:
        return self.num_held, self.num_in_flight, self.num_entries, self._num_withheld

    def _move(self, block: BlockId, *, held: int = 0, fenced: int = 0) -> None:
        """Change a block's entries, and the sums with them."""
        self._tally(block, -1)
        self._held[block] += held
        self._fenced[block] += fenced
        self.num_entries += held
        self._tally(block, 1)

    def _tally(self, block: BlockId, change: int) -> None:
        """Add to the count of the state that a block is in."""
        if self._held[block]:
            self.num_held += change
        elif self._fenced[block]:
            self.num_in_flight += change
        elif block in self._quarantined:
            self._num_withheld += change

    def _leave(self, block: BlockId, *, keep: bool) -> None:
        """Give a reference back to the pool, if that knows of it."""
        if self._pool.references(block):
            self._pool.give_back(block, keep=keep)
        else:
            self._suspects.add(block)

    def _quarantine(self, block: BlockId) -> None:
        """Give a block the references of its holders and one more, whatever it had."""
        self._quarantined.add(block)
        pool, wanted = self._pool, self.references(block)
        if not pool.references(block):
            pool.withdraw(block)
        while pool.references(block) < wanted:
            pool.share(block)
        while pool.references(block) > wanted:  # not the last one: wanted is at least 1
            pool.give_back(block, keep=False)

    def _count(self) -> None:
        """Count anew what is kept by and by."""
        self.num_entries = sum(self._held)
        self.num_held = self.num_in_flight = self._num_withheld = 0
        for block in map(BlockId, range(self._pool.num_blocks)):
            self._tally(block, 1)
