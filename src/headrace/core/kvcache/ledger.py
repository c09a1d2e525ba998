"""BlockLedger: who holds which block, kept beside the pool's own count of references.

Double entry: the pool counts free blocks, the ledger those that somebody holds. So an error in
either shows at once, and by a comparison of three numbers::

    free            in the pool, may be handed out
    + held          in at least one table, or on their way out of one (leaving.py)
    + quarantined   held by nobody who is known, or by too many: never handed out again
    == total

A block that is quarantined has one reference that nobody gives back; that is all there is to it. So
one that is still in somebody's table counts as held until it is not.

Every operation is O(1) for each block, and takes many. It knows no tables, no steps and no content:
``audit`` is told who ought to hold what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import InvariantBroken
from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping

    from headrace.core.kvcache.blocks import BlockPool


class Misfit(NamedTuple):
    """A block whose books were wrong. ``is_unsafe``: others may have written into it meanwhile."""

    block: BlockId
    is_unsafe: bool


class BlockLedger:
    """All changes of references go through here.

    ``num_entries`` counts the places in tables, and those of blocks that leave.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._held = [0] * pool.num_blocks
        self._quarantined: set[BlockId] = set()
        self._suspects: set[BlockId] = set()  # given back by who did not hold them
        self.num_held = 0
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
        known = self.num_held + self._num_withheld
        return self._pool.num_free + known == self._pool.num_blocks and not self._suspects

    def is_sound(self, block: BlockId) -> bool:
        """Whether a block is not quarantined."""
        return block not in self._quarantined

    def references(self, block: BlockId) -> int:
        """Return how many references a block ought to have."""
        return self._held[block] + (block in self._quarantined)

    def take(self, count: int) -> list[BlockId]:
        """Hand out free blocks for a table. The caller has looked at ``num_free``."""
        blocks = self._pool.take(count)
        self._enter(blocks)
        return blocks

    def share(self, blocks: Collection[BlockId]) -> None:
        """Put blocks that have content into one more table."""
        self._pool.share(blocks)
        self._enter(blocks)

    def give_back(self, blocks: Collection[BlockId], kept: Container[BlockId]) -> None:
        """Let go of blocks. The content of those in ``kept`` is worth keeping."""
        strangers = self._strike(blocks)
        if strangers:
            self._suspects.update(strangers)
            blocks = [block for block in blocks if block not in strangers]
        self._suspects.update(self._pool.give_back(blocks, kept))

    def audit(self, held: Mapping[BlockId, int]) -> list[Misfit]:
        """Compare every block with who holds it in truth; quarantine those that do not fit. O(n).

        Afterwards the books are those of ``held``, and balanced.
        """
        misfits: list[Misfit] = []
        pool = self._pool
        for block in map(BlockId, range(pool.num_blocks)):
            holders = held.get(block, 0)
            wanted = holders + (block in self._quarantined)
            fits = self._held[block] == holders
            if fits and pool.references(block) == wanted and block not in self._suspects:
                continue
            misfits.append(Misfit(block, is_unsafe=pool.references(block) < wanted))
            self._held[block] = holders
            self._quarantine(block)
        self._suspects.clear()
        self._count()
        return misfits

    def check_integrity(self, held: Mapping[BlockId, int]) -> None:
        """Raise InvariantBroken unless ledger, pool and those who hold blocks agree."""
        sums = self._sums()
        self._count()
        if sums != self._sums():
            raise InvariantBroken(f"the ledger's sums are {sums}, its entries say {self._sums()}")
        for block in map(BlockId, range(self._pool.num_blocks)):
            entries, holders = self._held[block], held.get(block, 0)
            references = self._pool.references(block)
            if entries != holders or references != self.references(block):
                raise InvariantBroken(
                    f"block {block}: {references} references, {entries} in the ledger, "
                    f"{holders} in tables or leaving"
                )
        if not self.is_balanced:
            raise InvariantBroken(
                f"{self._pool.num_free} free + {self.num_held} held + "
                f"{self._num_withheld} quarantined != {self._pool.num_blocks} blocks"
            )

    def _sums(self) -> tuple[int, int, int]:
        return self.num_held, self.num_entries, self._num_withheld

    def _enter(self, blocks: Collection[BlockId]) -> None:
        """Write down one more holder of each block."""
        held, quarantined, num_new, num_back = self._held, self._quarantined, 0, 0
        for block in blocks:
            count = held[block]
            held[block] = count + 1
            if not count:
                num_new += 1
                num_back += block in quarantined
        self.num_held += num_new
        self.num_entries += len(blocks)
        self._num_withheld -= num_back

    def _strike(self, blocks: Collection[BlockId]) -> list[BlockId]:
        """Write down one holder less of each block; return those that nobody held."""
        held, quarantined, num_left, num_withheld = self._held, self._quarantined, 0, 0
        strangers: list[BlockId] = []
        for block in blocks:
            count = held[block] - 1
            if count < 0:
                strangers.append(block)
                continue
            held[block] = count
            if not count:
                num_left += 1
                num_withheld += block in quarantined
        self.num_held -= num_left
        self.num_entries -= len(blocks) - len(strangers)
        self._num_withheld += num_withheld
        return strangers

    def _quarantine(self, block: BlockId) -> None:
        """Give a block the references of its holders and one more, whatever it had."""
        self._quarantined.add(block)
        pool, wanted = self._pool, self.references(block)
        if not pool.references(block):
            pool.withdraw(block)
        while pool.references(block) < wanted:
            pool.share((block,))
        while pool.references(block) > wanted:  # not the last one: wanted is at least 1
            pool.give_back((block,), kept=())

    def _count(self) -> None:
        """Count anew what is kept by and by."""
        self.num_entries = sum(self._held)
        self.num_held = sum(1 for count in self._held if count)
        self._num_withheld = sum(1 for block in self._quarantined if not self._held[block])
