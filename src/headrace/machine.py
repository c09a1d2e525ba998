"""Machine: the shape of everything that decides.

Rules of a Machine:

M1  no I/O, no await, no clock, no environment, no unseeded randomness, no iteration over sets
    where order matters;
M2  effects are frozen data, in order; their completion comes back as a later event;
M3  after ``handle(event, now)``, ``next_wakeup()`` is None or later than ``now``
    (both drivers assert it);
M4  ``now`` never decreases; a late or unexpected ``Tick`` is harmless;
M5  bad input is an effect (``Reject``), a broken invariant is an exception, and after an
    exception the machine is dead;
M6  across a process boundary events may be lost or repeated (ids make them idempotent), within
    a process never.

Machines run under exactly two drivers: ``server/driver.py`` on asyncio and
``twin/simulator.py`` in virtual time. No machine can tell which. Both hand over events that
come at one time in the order of (``Source``, arrival).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import Seconds

EventT_contra = TypeVar("EventT_contra", contravariant=True)
EffectT_co = TypeVar("EffectT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Tick:
    """The time a machine asked for in ``next_wakeup()`` has come (or nearly, or long since)."""


class Source(IntEnum):
    """Where an event comes from: breaks ties between events at one time, smallest first."""

    DEVICE = 0  # what was begun is done: makes room for what comes next
    PEER = 1  # messages of other processes and clients
    TIMER = 2


class Machine(Protocol[EventT_contra, EffectT_co]):
    """Decides; performs nothing. The same events at the same times give the same effects."""

    def handle(self, event: EventT_contra, now: Seconds) -> Sequence[EffectT_co]:
        """Take one event at time ``now``; return what should be done, in order."""
        ...

    def next_wakeup(self) -> Seconds | None:
        """When a ``Tick`` is wanted at the latest, or None."""
        ...
