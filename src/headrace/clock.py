"""Clocks. The only module of the product that reads the time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from headrace.types import Seconds


class Clock(Protocol):
    """A source of ``now``: seconds, monotonic, from an arbitrary origin."""

    def now(self) -> Seconds:
        """Return the current time in seconds."""
        ...


class MonotonicClock:
    """The operating system's monotonic clock."""

    def now(self) -> Seconds:
        """Return ``time.monotonic()``."""
        return time.monotonic()


def unix_time() -> int:
    """Return whole seconds since 1970 (for ``created`` fields and dated files, never deadlines)."""
    return int(time.time())


def wall_time() -> float:
    """Return seconds since 1970, for people to read; it may jump, so nothing waits by it."""
    return time.time()
