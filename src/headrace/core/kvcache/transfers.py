"""What crosses between the KV tiers' decisions and the shell that moves blocks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from headrace.types import BlockId, Seconds


class Tier(IntEnum):
    """Where blocks come from that the device lacks, the first choice first."""

    HOST = 0
    DISK = 1
    PEER = 2  # another engine's device; nothing is ever saved there


class Direction(IntEnum):
    """Which way; what somebody waits for goes first. A save is a READ and a STORE."""

    LOAD = 0  # from lower tiers to the device
    READ = 1  # from the device; the copies are kept for the next STORE, and no longer
    STORE = 2  # to lower tiers, what the last READ has copied


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Move whole blocks, ``digests[i]`` names the content of ``blocks[i]``; answer TransferDone.

    Until then no step touches the blocks of a LOAD. Those of a READ may be evicted and written
    meanwhile: what was copied of them then is not among the digests of the STORE, which names no
    blocks.
    """

    number: int
    direction: Direction
    blocks: tuple[BlockId, ...]
    digests: tuple[bytes, ...]
    source: str = ""  # of a LOAD from a neighbour: where that lends them


class TierRead(NamedTuple):
    """What a load took from one tier, and how long that took."""

    tier: Tier
    num_blocks: int
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferDone:
    """A transfer is over: the first ``num_done`` of its blocks were moved, the others not."""

    number: int
    num_done: int
    reads: tuple[TierRead, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TierChanged:
    """What a tier gained and lost since it was last told of, and how large it is now.

    ``quarantined`` blocks were found damaged, ``errors`` times it could not be used at all.
    """

    tier: Tier
    stored: tuple[bytes, ...] = ()
    dropped: tuple[bytes, ...] = ()
    used_bytes: int = 0
    quarantined: int = 0
    errors: int = 0


TierEvent: TypeAlias = TierChanged | TransferDone
