"""Segment: one append-only file of KV blocks, every one with its own checksum.

::

    header (64 bytes)   magic 8 | version u32 | block size u32 | block bytes u64
                        | SHA-256 of the model's identity 32 | zeros
    record, repeated    magic 4 | digest 32 | checksum 16 | zeros, to 64 bytes | block

All numbers are little-endian, all records of one length. A checksum is BLAKE2b of digest and
block, keyed with the model's identity: it says that these bytes are that content of that model.
Nothing is believed before its checksum was right. A record found damaged is **condemned**: its
magic is overwritten, so that no later start believes it either.

Nothing is ever synchronised to the disk (no fsync): it is a cache. After a power cut, what was
not written yet has a wrong checksum, or is a torn end, and is a miss.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from headrace.types import Tokens

    Write = Callable[[int, Sequence[bytes | memoryview], int], int]  # as os.pwritev

MAGIC = b"HRKVSEG\0"
VERSION = 1
RECORD_MAGIC = b"HRB1"
CONDEMNED = b"\0\0\0\0"
HEAD_BYTES = 64
CHECKSUM_BYTES = 16

_HEADER = struct.Struct("<8sIIQ32s")
_RECORD = struct.Struct("<4s32s16s")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """What all blocks of an engine have in common."""

    model_identity: str
    block_size: Tokens
    block_bytes: int

    @property
    def record_bytes(self) -> int:
        """Bytes of a block in a file."""
        return HEAD_BYTES + self.block_bytes

    @property
    def identity(self) -> bytes:
        """The model's identity in 32 bytes."""
        return sha256(self.model_identity.encode()).digest()

    @property
    def header(self) -> bytes:
        """What a file with such blocks begins with."""
        head = _HEADER.pack(MAGIC, VERSION, self.block_size, self.block_bytes, self.identity)
        return head.ljust(HEAD_BYTES, b"\0")

    def checksum(self, digest: bytes, block: memoryview) -> bytes:
        """Return what says that ``block`` is the content that ``digest`` names."""
        state = blake2b(digest, digest_size=CHECKSUM_BYTES, key=self.identity)
        state.update(block)
        return state.digest()


class Segment:
    """A file of blocks. ``write`` is os.pwritev. Methods raise OSError.

    ``places`` says by digest which record a block is. ``file`` is open for reading and writing,
    and belongs to the segment.
    """

    def __init__(self, path: Path, file: int, form: BlockFormat, *, write: Write) -> None:
        self.path = path
        self.places: dict[bytes, int] = {}
        self.num_records = 0
        self._file = file
        self._form = form
        self._write = write

    @property
    def used_bytes(self) -> int:
        """Bytes of the file."""
        return HEAD_BYTES + self.num_records * self._form.record_bytes

    def scan(self) -> int:
        """Learn what a file holds; return how many records cannot be one. Cuts off a torn end.

        Blocks are not read: that costs their bytes, and is done when one is wanted.
        """
        size = os.fstat(self._file).st_size
        self.num_records = max(0, size - HEAD_BYTES) // self._form.record_bytes
        num_wrong = 0
        for place in range(self.num_records):
            head = os.pread(self._file, _RECORD.size, self._offset(place))
            magic, digest, _ = _RECORD.unpack(head)
            if magic == RECORD_MAGIC:
                self.places[digest] = place
            else:
                num_wrong += magic != CONDEMNED
        if size > self.used_bytes:
            os.ftruncate(self._file, self.used_bytes)
        return num_wrong

    def append(self, digest: bytes, block: memoryview) -> None:
        """Write a block at the end. After an OSError the file is as it was."""
        head = _RECORD.pack(RECORD_MAGIC, digest, self._form.checksum(digest, block))
        parts: list[bytes | memoryview] = [head.ljust(HEAD_BYTES, b"\0"), block]
        written = self._write(self._file, parts, self.used_bytes)
        if written != self._form.record_bytes:
            os.ftruncate(self._file, self.used_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.places[digest] = self.num_records
        self.num_records += 1

    def read_into(self, digest: bytes, block: npt.NDArray[np.uint8]) -> bool:
        """Read a block; False, and the record is condemned, if it is not what it should be."""
        place = self.places[digest]
        head = bytearray(HEAD_BYTES)
        view = block.data
        try:
            count = os.preadv(self._file, [head, view], self._offset(place))
        except OSError:
            count = 0
        magic, named, checksum = _RECORD.unpack_from(head)
        if (
            count == self._form.record_bytes
            and (magic, named) == (RECORD_MAGIC, digest)
            and compare_digest(checksum, self._form.checksum(digest, view))
        ):
            return True
        del self.places[digest]
        self._write(self._file, [CONDEMNED], self._offset(place))
        return False

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _offset(self, place: int) -> int:
        return HEAD_BYTES + place * self._form.record_bytes


def create_segment(path: Path, form: BlockFormat, *, write: Write = os.pwritev) -> Segment:
    """Create a file without blocks, which only its owner may read. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if write(file, [form.header], 0) != HEAD_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    except OSError:
        os.close(file)
        path.unlink()
        raise
    return Segment(path, file, form, write=write)


def open_segment(path: Path, form: BlockFormat, *, write: Write = os.pwritev) -> Segment | None:
    """Open a file; None if it holds no blocks like ``form``. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.pread(file, HEAD_BYTES, 0) == form.header:
        return Segment(path, file, form, write=write)
    os.close(file)
    return None
