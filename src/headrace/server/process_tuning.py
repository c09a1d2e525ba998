"""What makes a process that lives long and allocates much cheaper to run."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

YOUNG_OBJECTS = 10_000
"""Made more than freed until the collector looks at the newest: some thousand requests' worth, of
which nearly all are gone by then without it."""

_POOL_BYTES = 4096


def settle_memory() -> None:
    """Take it that what is here now stays, and look for garbage in circles seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)


def pooled_bits(read: Callable[[int], bytes] = os.urandom) -> Callable[[int], int]:
    """Return what ``secrets.randbits`` is, with one call of the system for many numbers.

    Not to be used on both sides of a fork.
    """
    pool, taken = b"", 0

    def bits(number: int) -> int:
        nonlocal pool, taken
        size = (number + 7) // 8
        if taken + size > len(pool):
            pool, taken = read(max(_POOL_BYTES, size)), 0
        taken += size
        value = int.from_bytes(pool[taken - size : taken])
        return value >> (8 * size - number)

    return bits
