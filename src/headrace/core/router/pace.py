"""Pace: how fast requests leave and how long their prompts are, for honest predictions."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.types import Seconds, Tokens

NUM_REMEMBERED = 64
LATELY = 60.0  # seconds that an end counts


class Pace:
    """Of one Router, over its last requests."""

    def __init__(self) -> None:
        self._ends: deque[Seconds] = deque(maxlen=NUM_REMEMBERED)
        self._prompts: deque[Tokens] = deque(maxlen=NUM_REMEMBERED)

    def note_prompt(self, num_tokens: Tokens) -> None:
        """A request was accepted."""
        self._prompts.append(num_tokens)

    def note_end(self, now: Seconds) -> None:
        """A request left a replica: its place is free."""
        self._ends.append(now)

    @property
    def typical_prompt(self) -> Tokens | None:
        """Mean length of the last prompts, None before the first."""
        return round(sum(self._prompts) / len(self._prompts)) if self._prompts else None

    def seconds_for(self, num_requests: int, now: Seconds) -> Seconds | None:
        """Return how long so many requests take to leave, None if too few left lately."""
        ends = [end for end in self._ends if end > now - LATELY]
        if len(ends) < 2:
            return None
        rate = (len(ends) - 1) / max(now - ends[0], 1e-3)
        return num_requests / rate


def whole_seconds(seconds: Seconds, limit: Seconds) -> Seconds:
    """Return a Retry-After: whole seconds, at least one, at most ``limit``."""
    return float(max(1, ceil(min(seconds, limit))))
