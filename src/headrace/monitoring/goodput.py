"""Goodput: requests that came within what was asked of them, as their gateway sees it.

A request is **within its targets** if it ended well and

- its first token came within ``ttft``, counted from the request's last byte;
- the mean time between two of its tokens, (last - first) / (tokens - 1), is at most ``itl``;
- it ended within ``deadline``, counted from the request's last byte.

Of several choices the slowest one counts. What was refused or failed has missed; a client that
leaves has missed what was late already, and else says nothing about us: it is not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.errors import DeadlineExceeded, DeadlineInfeasible, NotReady, Overloaded
from headrace.types import FinishReason

if TYPE_CHECKING:
    from headrace.types import Seconds

TTFT: Final = "ttft"
ITL: Final = "itl"
DEADLINE: Final = "deadline"
REFUSED: Final = "refused"
FAILED: Final = "failed"

_WELL = (FinishReason.STOP, FinishReason.LENGTH)
_REFUSALS = (DeadlineInfeasible.code, Overloaded.code, NotReady.code)
_TOO_LATE = (DeadlineExceeded.code, FinishReason.DEADLINE)


class Targets(NamedTuple):
    """What is asked of a request's times; None: nothing."""

    ttft: Seconds | None = None
    itl: Seconds | None = None
    deadline: Seconds | None = None


NO_TARGETS: Final = Targets()


class Pace(NamedTuple):
    """What a request's times are, so far or at its end. ``ttft`` and ``itl`` None: no tokens."""

    seconds: Seconds  # since its last byte
    ttft: Seconds | None = None
    itl: Seconds | None = None


class TargetCheck(NamedTuple):
    """One target: what was asked, what came (None: nothing yet), and whether it is missed."""

    name: str
    asked: Seconds
    got: Seconds | None
    is_missed: bool


def check(targets: Targets, pace: Pace) -> list[TargetCheck]:
    """Return every target that was set; one that nothing came for is late once its time is over."""
    first = pace.seconds if pace.ttft is None else pace.ttft
    rows = (
        (TTFT, targets.ttft, pace.ttft, first),
        (ITL, targets.itl, pace.itl, pace.itl or 0.0),
        (DEADLINE, targets.deadline, pace.seconds, pace.seconds),
    )
    return [
        TargetCheck(name, asked, got, at_least > asked)
        for name, asked, got, at_least in rows
        if asked is not None
    ]


def missed(targets: Targets, pace: Pace, state: str) -> tuple[str, ...] | None:
    """Return what a request that ended as ``state`` says has missed: () is within its targets.

    None: it is not counted. ``state`` is a finish reason or an error code.
    """
    if targets == NO_TARGETS:
        return None
    if state in _REFUSALS:
        return (REFUSED,)
    late = tuple(row.name for row in check(targets, pace) if row.is_missed)
    if state in _WELL:
        return late
    if state == FinishReason.ABORT:
        return late or None
    ending = DEADLINE if state in _TOO_LATE else FAILED
    return tuple(dict.fromkeys((*late, ending)))
