"""Numbers that only look random: a seeded stream, and an order of replicas for each key.

No policy draws from anywhere else, so that equal seeds and calls give equal choices (rule M1).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.types import ReplicaId

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GAMMA = 0x9E37_79B9_7F4A_7C15


class Draws:
    """A Random: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""

    def __init__(self, seed: int = 0) -> None:
        self._state = seed & _MASK

    def below(self, limit: int) -> int:
        """See Random."""
        self._state = (self._state + _GAMMA) & _MASK
        return scrambled(self._state) * limit >> 64


def scrambled(value: int) -> int:
    """Return 64 bits that change all over when one bit of ``value`` does."""
    value = ((value ^ (value >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return value ^ (value >> 31)


def rendezvous(key: int, replica: ReplicaId) -> int:
    """Return the weight of a replica for a key of 64 bits: whoever computes it finds the same.

    The heaviest replica is a key's home; when one comes or goes, no key moves but to or from it
    (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).
    """
    return scrambled(key ^ number_of(replica))


@lru_cache(maxsize=1024)
def number_of(name: str) -> int:
    """Return 64 bits of a name's SHA-256."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "little")
