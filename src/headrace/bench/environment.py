"""Where and with what a run was made, so that a result can be read a year later."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import headrace
from headrace.build import is_compiled
from headrace.clock import unix_time

if TYPE_CHECKING:
    from collections.abc import Sequence

GIT_TIMEOUT_S = 5.0
_SECRET_FLAGS = ("--api-key",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Machine, software and command of a run. Holds no secret."""

    date: str
    command: str
    headrace: str
    compiled: bool  # its hot path
    commit: str | None
    commit_dirty: bool | None
    python: str
    system: str
    cpu: str
    cores: int
    memory_gib: float


def describe_environment(command: Sequence[str] | None = None) -> Environment:
    """Read what describes this machine and this process."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain") if commit else None
    return Environment(
        date=datetime.fromtimestamp(unix_time(), UTC).isoformat(),
        command=shlex.join(hide_secrets(command if command is not None else sys.argv)),
        headrace=headrace.__version__,
        compiled=is_compiled(),
        commit=commit,
        commit_dirty=None if status is None else bool(status),
        python=platform.python_version(),
        system=platform.platform(),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(_memory_bytes() / 2**30, 1),
    )


def hide_secrets(command: Sequence[str]) -> list[str]:
    """Return the command with the values of secret flags replaced."""
    shown: list[str] = []
    hide_next = False
    for word in command:
        flag, equals, _ = word.partition("=")
        if hide_next:
            shown.append("***")
        elif flag in _SECRET_FLAGS and equals:
            shown.append(f"{flag}=***")
        else:
            shown.append(word)
        hide_next = word in _SECRET_FLAGS
    return shown


def _git(*words: str) -> str | None:
    """Ask git about the checkout that this package lies in; None if it lies in none."""
    package = Path(headrace.__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(package), *words],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
            text=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
