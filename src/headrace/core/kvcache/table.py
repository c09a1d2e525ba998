"""BlockTable: one sequence's blocks, and the digests of what they will hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.kvcache.chain import extend
from headrace.core.kvcache.eviction.marks import NOBODY

if TYPE_CHECKING:
    from headrace.core.kvcache.eviction.marks import Owner, Visit
    from headrace.types import BlockId, KvSource, TokenId, Tokens


@dataclass(slots=True, eq=False)
class BlockTable:
    """Position p of the sequence lies in ``blocks[p // block_size]``.

    ``tokens`` is the sequence's own list, read here and never changed; ``chain`` holds the
    digests of its full blocks as far as they were needed. The first ``num_published`` blocks
    came from the prefix cache or were offered to it. ``awaits`` is the digest that was last found
    to be on its way, ``num_found`` how many blocks before it were found cached (shortcuts for the
    next look). ``urgency`` orders sequences that may have to wait for each other, most urgent
    first. ``owner`` and ``visit`` are for eviction. Of the first ``num_decided`` blocks it was
    decided whether to fetch them from a lower tier, or from ``source``, a neighbour; the last
    ``num_taken`` came from the cache and were not told to who asked for them (taking.py). Only
    KVCache and its tiers change a table.
    """

    tokens: list[TokenId]
    block_size: Tokens
    root: bytes
    chain: list[bytes] = field(default_factory=list)
    blocks: tuple[BlockId, ...] = ()  # replaced when it grows: plans hold it without a copy
    num_published: int = 0
    awaits: bytes = b""
    num_found: int = 0
    urgency: int = 0
    owner: Owner = NOBODY
    visit: Visit | None = None
    num_decided: int = 0
    num_taken: int = 0
    source: KvSource | None = None

    @property
    def num_sharable(self) -> int:
        """Leading blocks that may be shared: the last token is always computed, for its logits."""
        return (len(self.tokens) - 1) // self.block_size

    @property
    def num_named(self) -> int:
        """Leading blocks that may be shared and whose digests are known already."""
        return min(len(self.chain), self.num_sharable)

    def digest(self, index: int) -> bytes:
        """Return the digest of block ``index``, which the tokens must fill."""
        while len(self.chain) <= index:
            start = len(self.chain) * self.block_size
            tokens = self.tokens[start : start + self.block_size]
            self.chain.append(extend(self.parent(len(self.chain)), tokens))
        return self.chain[index]

    def parent(self, index: int) -> bytes:
        """Return what block ``index`` is chained to."""
        return self.digest(index - 1) if index else self.root

    def begins_like(self, other: BlockTable) -> bool:
        """Whether the first blocks of both are full and hold the same."""
        return self.is_full(0) and other.is_full(0) and self.digest(0) == other.digest(0)

    def is_full(self, index: int) -> bool:
        """Whether the known tokens fill block ``index``."""
        return (index + 1) * self.block_size <= len(self.tokens)
