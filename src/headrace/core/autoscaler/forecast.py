"""What was, as an estimate of what comes: means over time, and how long something has held."""

from __future__ import annotations

from math import exp, inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.types import Seconds

_START_WEIGHT = 0.3
"""Of the newest start in the mean of start times: four starts make an old machine forgotten."""


class Smoothed:
    """An exponential mean over time: after ``window`` seconds a value has 63 % of the weight."""

    def __init__(self, window: Seconds) -> None:
        self.value = 0.0
        self._window = window
        self._at: Seconds | None = None

    def update(self, value: float, now: Seconds) -> None:
        """Take a value that has held since the one before."""
        if self._at is None:
            self.value = value
        else:
            self.value += (1 - exp((self._at - now) / self._window)) * (value - self.value)
        self._at = now


class StartTime:
    """How long a replica takes to start."""

    def __init__(self, guess: Seconds) -> None:
        self.seconds = guess
        self._seen = False

    def update(self, seconds: Seconds) -> None:
        """Take the time of one start."""
        weight = _START_WEIGHT if self._seen else 1.0
        self.seconds += weight * (seconds - self.seconds)
        self._seen = True


class Hold:
    """How long a condition has held without a break, and how a value went meanwhile."""

    def __init__(self) -> None:
        self.least = 0.0
        self._first = 0.0
        self._last = 0.0
        self._since: Seconds | None = None
        self._now: Seconds = 0.0

    def update(self, value: float, mean: float, now: Seconds, *, holds: bool) -> None:
        """Tell whether it holds now, beside a value and its mean of late."""
        self._now, self._last = now, mean
        if not holds:
            self._since = None
        elif self._since is None:
            self._since, self._first, self.least = now, mean, value
        else:
            self.least = min(self.least, value)

    def has_held(self, seconds: Seconds) -> bool:
        """Whether it has held for so long."""
        return self._since is not None and self._now - self._since >= seconds

    def seconds_until(self, goal: float) -> Seconds:
        """Return when the mean will be down at ``goal`` if it goes on as it went meanwhile."""
        if self._since is None or self._last >= self._first:
            return inf
        pace = (self._first - self._last) / (self._now - self._since)
        return (self._last - goal) / pace

    def restart(self) -> None:
        """Count anew."""
        self._since = None
