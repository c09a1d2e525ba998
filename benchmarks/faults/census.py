"""What a server's processes hold: children, threads, file descriptors, files (Linux)."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headrace.testing.server_process import children_of, command_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """A server's process tree and its directory at one time."""

    children: int
    threads: int
    fds: int
    files: int

    def __sub__(self, before: Census) -> Census:
        return Census(
            children=self.children - before.children,
            threads=self.threads - before.threads,
            fds=self.fds - before.fds,
            files=self.files - before.files,
        )

    def grew(self, *, tolerated_fds: int, tolerated_threads: int = 0) -> bool:
        """Whether this difference is a leak: connections still closing are tolerated."""
        too_many = self.threads > tolerated_threads or self.fds > tolerated_fds
        return self.children > 0 or self.files > 0 or too_many


def take_census(root: int, directory: Path) -> Census:
    """Count what ``root`` and its descendants hold, and the files below ``directory``."""
    threads = fds = 0
    pids = [root]
    for pid in pids:
        pids += children_of(pid)
        with suppress(OSError):
            threads += sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
            fds += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    files = sum(1 for _ in directory.rglob("*"))
    return Census(children=len(pids) - 1, threads=threads, fds=fds, files=files)


def names_of(root: int) -> Counter[str]:
    """Count the children by what they are."""
    return Counter(command_of(pid) for pid in children_of(root))
