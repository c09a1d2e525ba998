"""OldestFirst: the plainest order of eviction, for tests of what is built on one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace.types import BlockId


class OldestFirst:
    """A list of blocks."""

    def __init__(self) -> None:
        self._blocks: list[BlockId] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, blocks: Sequence[BlockId]) -> None:
        """Append blocks."""
        self._blocks.extend(blocks)

    def remove(self, blocks: Sequence[BlockId]) -> None:
        """Take blocks out. Raises InvariantBroken if one is not there."""
        for block in blocks:
            if block not in self._blocks:
                raise InvariantBroken(f"block {block} is free and holds nothing: it is not shared")
            self._blocks.remove(block)

    def pop(self) -> BlockId:
        """Take the oldest out."""
        return self._blocks.pop(0)

    def victims(self) -> Iterator[BlockId]:
        """All, oldest first."""
        return iter(self._blocks)
