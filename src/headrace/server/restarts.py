"""When a process that died is started again: pure, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.types import Seconds

HEALTHY_SECONDS = 60.0
"""Service for this long makes earlier deaths forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartLimits:
    """Pauses double from ``min_seconds`` to ``max_seconds``; so many deaths are a crash loop."""

    min_seconds: Seconds
    max_seconds: Seconds
    crash_loop_deaths: int


class RestartPolicy:
    """Counts deaths of one process."""

    def __init__(self, limits: RestartLimits) -> None:
        self._limits = limits
        self._num_deaths = 0
        self._was_ready = False

    @property
    def is_crash_loop(self) -> bool:
        """Whether it dies again and again."""
        return self._num_deaths >= self._limits.crash_loop_deaths

    @property
    def is_hopeless(self) -> bool:
        """A crash loop of a process that never was ready: starting it again helps nobody."""
        return self.is_crash_loop and not self._was_ready

    def died(self, *, ready_seconds: Seconds | None) -> Seconds:
        """Take a death after so long in service (None: never ready); return the pause."""
        if ready_seconds is not None:
            self._was_ready = True
            if ready_seconds >= HEALTHY_SECONDS:
                self._num_deaths = 0
        pause = self._limits.min_seconds * 2.0**self._num_deaths
        self._num_deaths += 1
        return min(pause, self._limits.max_seconds)
