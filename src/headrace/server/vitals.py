"""What a process tells of itself in its heartbeat: memory, open files, computing time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.server.links import ReplicaProcess

if TYPE_CHECKING:
    from headrace.types import Seconds

_STATM = Path("/proc/self/statm")  # see proc(5): pages in all, pages resident, ...
_DESCRIPTORS = "/proc/self/fd"


def vitals(*, step_seconds: Seconds) -> ReplicaProcess:
    """Return how this process does. Memory and files are 0 where the system does not tell."""
    try:
        pages = int(_STATM.read_text().split()[1])
        open_fds = len(os.listdir(_DESCRIPTORS))
    except OSError:
        pages = open_fds = 0
    times = os.times()
    return ReplicaProcess(
        step_seconds=step_seconds,
        resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        open_fds=open_fds,
        cpu_seconds=times.user + times.system,
    )
