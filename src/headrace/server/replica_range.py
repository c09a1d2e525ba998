"""FLOOR:CEILING, how many replicas there may be."""

from __future__ import annotations

import re
from typing import NamedTuple

from headrace.errors import UsageError

MAX_REPLICAS = 64
"""Of one supervisor: each is a process, a socket and a row in every gateway."""

_FORM = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}))?")


class ReplicaRange(NamedTuple):
    """At least ``floor`` replicas and at most ``ceiling``."""

    floor: int
    ceiling: int

    def __str__(self) -> str:
        return str(self.floor) if self.floor == self.ceiling else f"{self.floor}:{self.ceiling}"


def parse_range(text: str, *, place: str) -> ReplicaRange:
    """Return ``2`` as 2:2 and ``1:3`` as it is. Raises UsageError that names ``place``."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"{place} is {text!r}: write a number, or FLOOR:CEILING as in 1:3")
    floor = int(match[1])
    found = ReplicaRange(floor, floor if match[2] is None else int(match[2]))
    problem = objection(found)
    if problem is not None:
        raise UsageError(f"{place} is {text!r}: {problem}")
    return found


def objection(wanted: ReplicaRange) -> str | None:
    """Return what is wrong with a range, None if nothing is."""
    floor, ceiling = wanted
    if floor < 0 or ceiling > MAX_REPLICAS:
        return f"there may be 1 to {MAX_REPLICAS} replicas"
    if floor > ceiling:
        return f"the floor {floor} is above the ceiling {ceiling}"
    if floor == 0:
        return "at least one replica must stay; scale to zero comes later"
    return None
