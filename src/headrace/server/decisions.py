"""What the controller decided: its part of the journal, and the changes of the replicas' number."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from headrace.monitoring.shapes import ScalingRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.monitoring.journal import Journal

MAX_SCALINGS = 256
"""Kept for `headrace ps` and the console."""


class Decisions:
    """``unix_time`` is wall-clock time, for people."""

    def __init__(self, journal: Journal, unix_time: Callable[[], float]) -> None:
        self.journal = journal
        self.scalings: deque[ScalingRow] = deque(maxlen=MAX_SCALINGS)
        self.num_scalings = {"out": 0, "in": 0, "same": 0}
        self._unix_time = unix_time

    def take(self, kind: str, subject: str, reason: str) -> None:
        """Write down what is done to a replica, or what became of it."""
        source = "supervisor" if kind in ("died", "gone") else "autoscaler"
        self.journal.add(kind, subject, reason, source=source)

    def scale(self, *, desired: int, present: int, reason: str) -> None:
        """Write down that the number of replicas changes."""
        self.journal.add("scaled", f"{present} to {desired}", reason)
        self.scalings.append(
            ScalingRow(unix=self._unix_time(), desired=desired, present=present, reason=reason)
        )
        direction = "out" if desired > present else "in" if desired < present else "same"
        self.num_scalings[direction] += 1
