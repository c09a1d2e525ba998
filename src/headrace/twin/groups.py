"""Groups: what requests of one class and tenant got, over all time or in a window of it."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from headrace.monitoring.goodput import NO_TARGETS, Pace, Targets, missed
from headrace.types import FinishReason, PriorityClass

if TYPE_CHECKING:
    from headrace.twin.traces.terms import Terms
    from headrace.types import Seconds, Tokens

_CLASSES = tuple(PriorityClass)


class Window(NamedTuple):
    """A part of the simulation's time."""

    begin: Seconds
    end: Seconds


EVER = Window(0.0, float("inf"))


class GroupKey(NamedTuple):
    """What requests of a group have in common."""

    priority: PriorityClass
    tenant: str


@dataclass(slots=True, eq=False)
class Group:
    """Counts of requests that began in ``window``, and of tokens that came in it.

    Goodput of requests that ask for nothing is measured by ``targets``, of which nobody else knows.
    """

    window: Window = EVER
    targets: Targets = NO_TARGETS
    requests: int = 0
    completed: int = 0
    with_targets: int = 0
    within_targets: int = 0
    output_tokens: Tokens = 0
    missed: Counter[str] = field(default_factory=Counter)
    ttft: array[float] = field(default_factory=lambda: array("d"))
    itl: array[float] = field(default_factory=lambda: array("f"))
    e2e: array[float] = field(default_factory=lambda: array("d"))

    def counts(self, at: Seconds) -> bool:
        """Whether what happens then is counted."""
        return self.window.begin <= at < self.window.end

    def begin(self, at: Seconds) -> None:
        """A request is sent."""
        self.requests += self.counts(at)

    def first_token(self, began: Seconds, now: Seconds) -> None:
        """A request that began then has its first token."""
        if self.counts(began):
            self.ttft.append(now - began)

    def next_token(self, began: Seconds, gap: Seconds) -> None:
        """It has another one, ``gap`` seconds after the one before."""
        if self.counts(began):
            self.itl.append(gap)

    def end(self, began: Seconds, terms: Terms, pace: Pace, state: str) -> None:
        """It has ended; ``state`` is a finish reason or an error code."""
        if not self.counts(began):
            return
        if state == FinishReason.LENGTH:
            self.completed += 1
            self.e2e.append(pace.seconds)
        found = missed(self.targets if terms.targets == NO_TARGETS else terms.targets, pace, state)
        if found is not None:
            self.with_targets += 1
            self.within_targets += not found
            self.missed.update(found)


class Groups:
    """A Group for each class and tenant of a trace."""

    def __init__(self, window: Window = EVER, targets: Targets = NO_TARGETS) -> None:
        self.window = window
        self._targets = targets
        self._groups: dict[GroupKey, Group] = {}

    def of(self, terms: Terms) -> Group:
        """Return the group of a request."""
        key = GroupKey(terms.priority, terms.tenant)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(self.window, self._targets)
        return group

    def rows(self) -> list[tuple[GroupKey, Group]]:
        """Return all, most urgent first."""
        return sorted(self._groups.items(), key=_urgency)


def _urgency(row: tuple[GroupKey, Group]) -> tuple[int, str]:
    return _CLASSES.index(row[0].priority), row[0].tenant
