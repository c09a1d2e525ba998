"""DiskTier: blocks in files that outlive the engine.

A directory has one owner at a time, who holds the lock on a file in it. Files that begin
differently (another model, another version, somebody else's) are left alone and do not count.
Over the limit, the oldest file goes with all its blocks. After an error in writing, nothing is
written for ``RETRY`` seconds; what is there can still be read.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from typing import TYPE_CHECKING

from headrace.server.kv_tiers.segment import HEAD_BYTES, create_segment, open_segment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from headrace.clock import Clock
    from headrace.server.kv_tiers.segment import BlockFormat, Segment, Write
    from headrace.types import Seconds

SEGMENT_BYTES = 64 << 20
MAX_SEGMENTS = 64  # files open at one time; with a large limit they are larger
MIN_SEGMENTS = 8  # with a small one they are smaller, so that not all goes at once
RETRY: Seconds = 60.0
SUFFIX = ".kv"

_log = logging.getLogger(__name__)


class DiskTier:
    """At most ``max_bytes`` of blocks in ``directory``. For one thread; ``write`` is os.pwritev."""

    def __init__(
        self,
        directory: Path,
        form: BlockFormat,
        *,
        max_bytes: int,
        clock: Clock,
        write: Write = os.pwritev,
    ) -> None:
        self.num_errors = 0
        self.num_quarantined = 0
        self._directory = directory
        self._form = form
        self._max_bytes = max_bytes
        self._clock = clock
        self._write = write
        self._lock: int | None = None
        self._segments: list[Segment] = []  # oldest first; the last one is written to
        self._off_until: Seconds = float("-inf")

    @property
    def used_bytes(self) -> int:
        """Bytes of its files."""
        return sum(segment.used_bytes for segment in self._segments)

    def open(self) -> Iterator[tuple[bytes, ...]]:
        """Take the directory and find what is there, a file at a time; yields digests.

        Raises OSError if the directory cannot be used, or another engine has it.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _locked(self._directory / "lock")
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            segment = self._opened(path) if path.stem.isdecimal() else None
            if segment is not None:
                self._segments.append(segment)
                yield tuple(segment.places)

    def put(self, digest: bytes, block: npt.NDArray[np.uint8]) -> tuple[bytes, ...] | None:
        """Write a block; return the digests that went for it, None if it could not be written."""
        if self._holds(digest):
            return ()
        if self._lock is None or self._clock.now() < self._off_until:
            return None
        try:
            gone = self._make_room()
            self._segments[-1].append(digest, block.data)
        except OSError as error:
            self._switch_off(error)
            return None
        self._switch_on()
        return gone

    def read_into(self, digest: bytes, block: npt.NDArray[np.uint8]) -> bool:
        """Read a block; False if it is not here, or was and is damaged."""
        for segment in reversed(self._segments):
            if digest in segment.places:
                return self._read(segment, digest, block)
        return False

    def close(self) -> None:
        """Close all files and let go of the directory. Idempotent."""
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _opened(self, path: Path) -> Segment | None:
        try:
            segment = open_segment(path, self._form, write=self._write)
            if segment is None:
                return None
            self.num_quarantined += segment.scan()
        except OSError as error:
            _log.warning("%s is ignored: %s", path, error)
            return None
        return segment

    def _read(self, segment: Segment, digest: bytes, block: npt.NDArray[np.uint8]) -> bool:
        try:
            if segment.read_into(digest, block):
                return True
        except OSError as error:  # the mark could not be written; it is forgotten all the same
            _log.warning("%s: a damaged block could not be marked: %s", segment.path, error)
        self.num_quarantined += 1
        _log.warning("%s: a block is damaged; it is computed again", segment.path)
        return False

    def _make_room(self) -> tuple[bytes, ...]:
        """See to it that the last segment has room for a block; return what went for it."""
        share = self._max_bytes // MIN_SEGMENTS
        limit = max(min(SEGMENT_BYTES, share), self._max_bytes // MAX_SEGMENTS)
        record_bytes = self._form.record_bytes
        gone: list[bytes] = []
        while self._segments and self.used_bytes + HEAD_BYTES + record_bytes > self._max_bytes:
            oldest = self._segments.pop(0)
            gone += oldest.places
            oldest.close()
            oldest.path.unlink(missing_ok=True)
        if not self._segments or self._segments[-1].used_bytes + record_bytes > limit:
            number = 1 + max((int(s.path.stem) for s in self._segments), default=0)
            self._segments.append(self._new_segment(number))
        return tuple(digest for digest in gone if not self._holds(digest))

    def _new_segment(self, number: int) -> Segment:
        while True:  # past files that are somebody else's
            path = self._directory / f"{number:08d}{SUFFIX}"
            try:
                return create_segment(path, self._form, write=self._write)
            except FileExistsError:
                number += 1

    def _holds(self, digest: bytes) -> bool:
        return any(digest in segment.places for segment in self._segments)

    def _switch_off(self, error: OSError) -> None:
        self._off_until = self._clock.now() + RETRY
        self.num_errors += 1
        if self.num_errors == 1:
            why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            _log.warning(
                "the KV cache's disk tier is off: %s (%s); it is tried again every %g s",
                why,
                self._directory,
                RETRY,
            )

    def _switch_on(self) -> None:
        if self._off_until > 0:
            self._off_until = float("-inf")
            _log.info("the KV cache's disk tier is on again (%s)", self._directory)


def _locked(path: Path) -> int:
    """Return an open file that holds the lock. Raises OSError."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
