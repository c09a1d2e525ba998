"""Seats: how many of a scarce thing each name holds, here and at the other gateways.

What the others hold is as old as their last saying, so that all together may hold more than the
limit by what came in within one period of gossip, and never take more while they do.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def nobody_else(_name: str) -> int:
    """There is no other gateway."""
    return 0


class Seats:
    """``elsewhere`` says how many others hold."""

    def __init__(self, elsewhere: Callable[[str], int] = nobody_else) -> None:
        self.taken: Counter[str] = Counter()  # here; names that hold none are not in it
        self._elsewhere = elsewhere

    def take(self, name: str, limit: int) -> bool:
        """Take one, unless so many are taken already; return whether it was."""
        if self.taken[name] + self._elsewhere(name) >= limit:
            if not self.taken[name]:
                del self.taken[name]
            return False
        self.taken[name] += 1
        return True

    def leave(self, name: str) -> None:
        """Give one back."""
        self.taken[name] -= 1
        if self.taken[name] <= 0:
            del self.taken[name]
