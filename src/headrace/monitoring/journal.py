"""Decision journal: what was decided, about whom, and why. A bounded ring, and a file if wanted.

One entry for each decision, none for each token. Several processes may write to one file: lines
are appended whole, and whoever finds the file too long moves it to ``NAME.1``.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.monitoring.logging import event as log_event
from headrace.monitoring.shapes import JournalEntry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_ENTRIES: Final = 4096
MAX_FILE_BYTES: Final = 64 << 20
"""Of the file; with the one before it, a journal takes twice as much."""

_log = logging.getLogger(__name__)


class JournalFile:
    """JSON lines at ``path``, mode 0600. The first write error ends it, with one warning."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._descriptor: int | None = None  # None: not opened yet
        self._broken = False

    def write(self, entry: JournalEntry) -> None:
        """Append one line."""
        if self._broken:
            return
        line = msgspec.json.encode(entry) + b"\n"
        try:
            if self._descriptor is None:
                self._open()
            written = os.write(self._opened, line)
            if written < len(line):
                raise OSError("the disk is full")
            if os.fstat(self._opened).st_size >= self._max_bytes:
                self._rotate()
        except OSError as error:
            self._broken = True
            self.close()
            log_event(
                _log,
                logging.WARNING,
                "the journal is not written any more",
                path=str(self._path),
                reason=str(error),
            )

    def close(self) -> None:
        """Idempotent; a later write opens the file again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def _opened(self) -> int:
        assert self._descriptor is not None
        return self._descriptor

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)

    def _rotate(self) -> None:
        """Begin a new file, unless another process has done so already."""
        mine, there = os.fstat(self._opened), os.stat(self._path)
        self.close()
        if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
            os.replace(self._path, f"{self._path}.1")
        self._open()


@dataclass(slots=True)
class _Noted:
    """An entry whose reason nobody has read: its parts, to be put together."""

    number: int
    unix: float
    source: str
    kind: str
    subject: str
    reason: tuple[object, ...]

    def entry(self) -> JournalEntry:
        return JournalEntry(
            number=self.number,
            unix=self.unix,
            source=self.source,
            kind=self.kind,
            subject=self.subject,
            reason="".join(map(str, self.reason)),
        )


class Journal:
    """The last decisions of one process. ``unix_time`` is wall-clock time."""

    def __init__(
        self,
        *,
        unix_time: Callable[[], float],
        source: str,
        file: JournalFile | None = None,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        self._unix_time = unix_time
        self._source = source
        self._file = file
        self._entries: deque[_Noted] = deque(maxlen=max_entries)
        self._number = 0

    def add(self, kind: str, subject: str, *reason: object, source: str | None = None) -> None:
        """Write down one decision; its number is one more than the last one's.

        The parts of ``reason`` are put together as strings, when somebody reads them: they must
        not change.
        """
        self._number += 1
        source = source or self._source
        noted = _Noted(self._number, self._unix_time(), source, kind, subject, reason)
        self._entries.append(noted)
        if self._file is not None:
            self._file.write(noted.entry())

    def after(self, number: int, *, limit: int = 1000) -> list[JournalEntry]:
        """Return the newest ``limit`` entries whose numbers are above ``number``, in order."""
        newest: list[JournalEntry] = []
        for noted in reversed(self._entries):
            if noted.number <= number or len(newest) >= limit:
                break
            newest.append(noted.entry())
        newest.reverse()
        return newest

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
