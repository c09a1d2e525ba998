"""What can be done to a connection, as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from headrace.types import Seconds

PIECE_BYTES: Final = 16 * 1024
"""Bytes are passed on in pieces of at most this."""

_PIECES_PER_SECOND: Final = 50  # of a limited connection, so that it flows and does not jerk


class Towards(StrEnum):
    """Which bytes are meant: a connection has two directions, and faults may be of one."""

    CLIENT = "client"  # answers
    UPSTREAM = "upstream"  # requests
    BOTH = "both"


class Ending(StrEnum):
    """How a connection goes wrong for good."""

    REFUSE = "refused"  # accepted and reset at once; nobody is connected to
    RESET = "reset"  # both sides see a reset
    CUT = "cut"  # both sides see an orderly end, wherever the bytes stood
    HANG = "hung"  # no more bytes pass in this direction, and none are read; both sides stay open
    HALF_OPEN = "half-open"  # upstream is reset, the client is told nothing


class Limit(NamedTuple):
    """An Ending that comes when so many bytes have passed in one direction."""

    ending: Ending
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What happens to connections, or rather to the ``share`` of them that is struck.

    Bytes are counted from a connection's beginning, in each direction of ``towards`` by itself.
    ``refuse`` and ``share`` are of whole connections.
    """

    share: float = 1.0
    towards: Towards = Towards.CLIENT
    refuse: bool = False
    latency: Seconds = 0.0  # between a byte's coming and its going
    jitter: Seconds = 0.0  # up to so much more; bytes stay in order
    bandwidth: float | None = None  # bytes/s
    drip: float | None = None  # bytes/s, each byte by itself
    corrupt: float = 0.0  # share of bytes of which one bit is turned over
    reset_after: int | None = None  # bytes
    cut_after: int | None = None
    hang_after: int | None = None
    half_open_after: int | None = None

    @property
    def limit(self) -> Limit | None:
        """The ending that comes first."""
        found = (
            (Ending.RESET, self.reset_after),
            (Ending.CUT, self.cut_after),
            (Ending.HANG, self.hang_after),
            (Ending.HALF_OPEN, self.half_open_after),
        )
        limits = [Limit(ending, after) for ending, after in found if after is not None]
        return min(limits, key=lambda limit: limit.after, default=None)

    @property
    def rate(self) -> float | None:
        """Bytes per second, None: as fast as they come."""
        return self.bandwidth if self.drip is None else self.drip

    @property
    def piece_bytes(self) -> int:
        """How many bytes are passed on at once."""
        if self.drip is not None:
            return 1
        if self.bandwidth is None:
            return PIECE_BYTES
        return max(1, min(PIECE_BYTES, int(self.bandwidth / _PIECES_PER_SECOND)))

    def concerns(self, side: Towards) -> bool:
        """Whether bytes towards ``side`` are meant."""
        return self.towards in (side, Towards.BOTH)


NO_FAULTS: Final = Faults()


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """What was done to one connection. Connections are numbered from 1 in order of coming."""

    connection: int
    peer: str
    what: str
    passed: int | None = None  # bytes that had gone to that side; None: it never got so far
    side: Towards = Towards.CLIENT

    def __str__(self) -> str:
        told = f"connection {self.connection} of {self.peer}: {self.what}"
        if self.passed is None:
            return told
        return f"{told} after {self.passed} bytes to the {self.side}"
