"""Incident files: an engine's journal of steps on disk, so that what went wrong can be replayed.

Written when the engine gives something up to go on, when it dies, and when somebody asks (SIGUSR1).
They hold prompts and generated tokens: mode 0600, in a directory of mode 0700, the oldest removed.
"""

from __future__ import annotations

import logging
import os
import platform
from typing import TYPE_CHECKING, Protocol

import msgspec

from headrace import __version__
from headrace.clock import wall_time
from headrace.monitoring.logging import event as log_event
from headrace.monitoring.step_journal import FORMAT, JournalDump

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from headrace.clock import Clock
    from headrace.core.scheduler.engine_core import EngineCore
    from headrace.core.scheduler.events import EngineEffect, EngineEvent
    from headrace.types import Seconds

SUFFIX = ".journal"
MAX_FILES = 16
"""Kept in the directory, of all engines together."""

PAUSE: Seconds = 60.0
"""Between two files that nobody asked for."""

_log = logging.getLogger(__name__)


class KeepsSteps(Protocol):
    """StepJournal, or one that keeps nothing."""

    def observe(self, event: EngineEvent, now: Seconds, effects: Sequence[EngineEffect]) -> None:
        """Write down one event."""
        ...

    def segments(self) -> list[bytes]:
        """Return all that is kept."""
        ...


class Recorded:
    """A core whose every event goes into a journal, the one that it dies of included."""

    def __init__(self, core: EngineCore, journal: KeepsSteps) -> None:
        self._core = core
        self._journal = journal

    def handle(self, event: EngineEvent, now: Seconds) -> Sequence[EngineEffect]:
        """See Machine."""
        effects: Sequence[EngineEffect] = ()
        try:
            effects = self._core.handle(event, now)
        finally:
            self._journal.observe(event, now, effects)
        return effects

    def next_wakeup(self) -> Seconds | None:
        """See Machine."""
        return self._core.next_wakeup()


class Incidents:
    """Writes ``journal`` into ``directory``. What cannot be written is logged and forgotten."""

    def __init__(self, journal: KeepsSteps, directory: Path, replica: str, clock: Clock) -> None:
        self._journal = journal
        self._directory = directory
        self._replica = replica
        self._clock = clock
        self._not_before: Seconds = 0.0

    def happened(self, reason: str) -> None:
        """Write a file, unless one was written a moment ago."""
        if self._clock.now() >= self._not_before:
            self._not_before = self._clock.now() + PAUSE
            self.write(reason)

    def write(self, reason: str) -> None:
        """Write a file now."""
        segments = self._journal.segments()
        if not segments:
            return
        unix = wall_time()
        dump = JournalDump(
            format=FORMAT,
            version=__version__,
            python=platform.python_version(),
            replica=self._replica,
            unix=unix,
            reason=reason,
            segments=segments,
        )
        path = self._directory / f"{self._replica}-{os.getpid()}-{unix:.3f}{SUFFIX}"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, msgspec.msgpack.encode(dump))
            for old in sorted(self._directory.glob(f"*{SUFFIX}"), key=_age)[:-MAX_FILES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            text = "the journal of steps cannot be written"
            log_event(_log, logging.WARNING, text, path=str(path), reason=str(error))
            return
        log_event(_log, logging.WARNING, "wrote the journal of steps", path=str(path))


def _write(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    part.rename(path)


def _age(path: Path) -> float:
    return path.stat().st_mtime
