"""PrefixIndex: which block holds the content with a given digest, and what changed of late.

It knows nothing of references or free blocks. A digest names at most one block; a block has at
most one digest.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.kvcache.chain import num_common
from headrace.errors import InvariantBroken
from headrace.types import block_key

if TYPE_CHECKING:
    from collections.abc import KeysView

    from headrace.core.kvcache.table import BlockTable
    from headrace.types import BlockId, BlockKey, Tokens

MAX_SIBLINGS = 8
"""Blocks under one parent that are compared at most, newest first: keeps a lookup O(1)."""


class Content(NamedTuple):
    """What a block holds: ``tokens`` (packed) after the chain that ends in ``parent``."""

    digest: bytes
    parent: bytes
    tokens: bytes


class Changes(NamedTuple):
    """What an index gained and lost between two looks. What came and went again is in neither."""

    stored: tuple[BlockKey, ...]
    removed: tuple[BlockKey, ...]


class PrefixIndex:
    """Digest -> block, and parent digest -> its blocks."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, BlockId] = {}
        self._contents: dict[BlockId, Content] = {}
        self._children: dict[bytes, dict[BlockId, None]] = {}  # a dict as an ordered set
        self.num_added = 0  # contents, from the start
        self._touched: dict[bytes, bool] = {}  # since the last look; whether it was here then

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: BlockId) -> bool:
        return block in self._contents

    def find(self, digest: bytes) -> BlockId | None:
        """Return the block that holds ``digest``."""
        return self._blocks.get(digest)

    @property
    def blocks(self) -> KeysView[BlockId]:
        """The blocks that have content."""
        return self._contents.keys()

    def reach(self, table: BlockTable, start: int) -> int:
        """Guess, by bisection, up to which block a table's content is here, if it is to ``start``.

        Only as far as its digests are known already.
        """
        low, high, blocks, chain = start, table.num_named, self._blocks, table.chain
        while low < high:
            middle = (low + high) // 2
            if chain[middle] in blocks:
                low = middle + 1
            else:
                high = middle
        return low

    def run(self, table: BlockTable, start: int, stop: int) -> list[BlockId]:
        """Return the blocks that hold a table's content from block ``start`` on, up to a gap."""
        blocks = self._blocks
        found: list[BlockId] = []
        for digest in table.chain[start:stop]:
            block = blocks.get(digest)
            if block is None:
                return found
            found.append(block)
        for index in range(start + len(found), stop):
            block = blocks.get(table.digest(index))
            if block is None:
                break
            found.append(block)
        return found

    def content(self, block: BlockId) -> Content | None:
        """Return what a block holds: the very same object as long as it was not evicted."""
        return self._contents.get(block)

    def add(self, block: BlockId, content: Content) -> bool:
        """Name a block's content; False if another block already holds the same."""
        if content.digest in self._blocks:
            return False
        if block in self._contents:
            raise InvariantBroken(f"block {block} holds {self._contents[block].digest.hex()}")
        self._touched.setdefault(content.digest, False)
        self.num_added += 1
        self._blocks[content.digest] = block
        self._contents[block] = content
        self._children.setdefault(content.parent, {})[block] = None
        return True

    def drop(self, block: BlockId) -> None:
        """Forget a block's content."""
        content = self._contents.pop(block)
        self._touched.setdefault(content.digest, True)
        del self._blocks[content.digest]
        siblings = self._children[content.parent]
        del siblings[block]
        if not siblings:
            del self._children[content.parent]

    def closest(self, parent: bytes, tokens: bytes) -> tuple[BlockId, Tokens] | None:
        """Return the block under ``parent`` that begins with most of ``tokens``, and how many."""
        best: tuple[BlockId, Tokens] | None = None
        most = 0
        for block in islice(reversed(self._children.get(parent, {})), MAX_SIBLINGS):
            common = num_common(self._contents[block].tokens, tokens)
            if common > most:
                best, most = (block, common), common
        return best

    def keys(self) -> tuple[BlockKey, ...]:
        """Return the keys of all content, oldest first."""
        return tuple(map(block_key, self._blocks))

    def take_changes(self) -> Changes | None:
        """Return what changed since the last call, None if nothing did."""
        if not self._touched:
            return None
        touched, self._touched = self._touched, {}
        stored: list[BlockKey] = []
        removed: list[BlockKey] = []
        for digest, was_here in touched.items():
            if (digest in self._blocks) is not was_here:
                (removed if was_here else stored).append(block_key(digest))
        return Changes(tuple(stored), tuple(removed)) if stored or removed else None

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless the three maps tell the same."""
        children = sum(len(blocks) for blocks in self._children.values())
        if not len(self._blocks) == len(self._contents) == children:
            raise InvariantBroken(
                f"{len(self._blocks)} digests, {len(self._contents)} contents, {children} children"
            )
        for block, content in self._contents.items():
            if self._blocks.get(content.digest) != block:
                raise InvariantBroken(f"block {block} is not found under its own digest")
            if block not in self._children[content.parent]:
                raise InvariantBroken(f"block {block} is not among its parent's children")
