"""HostTier: blocks in this process's memory, the least recently used one goes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


class HostTier:
    """At most ``max_bytes`` of blocks in one piece of memory, which is resident as far as used."""

    def __init__(self, *, max_bytes: int, block_bytes: int) -> None:
        self._slots = np.empty((max_bytes // block_bytes, block_bytes), np.uint8)
        self._places: OrderedDict[bytes, int] = OrderedDict()  # by digest, oldest first

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks it holds."""
        return len(self._places) * self._slots.shape[1]

    def put(self, digest: bytes, content: npt.NDArray[np.uint8]) -> bytes | None:
        """Keep a copy of a block; return the digest of the one that had to go for it."""
        gone: bytes | None = None
        if digest in self._places:
            self._places.move_to_end(digest)
            return None
        place = len(self._places)
        if place == len(self._slots):
            gone, place = self._places.popitem(last=False)
        self._slots[place] = content
        self._places[digest] = place
        return gone

    def read_into(self, digest: bytes, content: npt.NDArray[np.uint8]) -> bool:
        """Copy a block out; False if it is not here."""
        place = self._places.get(digest)
        if place is None:
            return False
        self._places.move_to_end(digest)
        content[...] = self._slots[place]
        return True
