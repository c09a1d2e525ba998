"""Reading GGUF model files, versions 2 and 3 (ggml-org/ggml, docs/gguf.md).

A model file comes from the internet, so nothing in it is believed: every count, length, offset
and product is compared with the bytes that are really there before memory is taken or anything
is mapped. Whatever is wrong ends in one line, a ModelFileError that says what, where in the file
and what to do.

::

    magic "GGUF" | version u32 | tensors u64 | pairs u64
    pairs   x ( key string | type u32 | value )         string: length u64, UTF-8 bytes
    tensors x ( name string | dims u32 | dim u64 ... | kind u32 | offset u64 )
    padding to general.alignment
    tensor data, each at its offset from here
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from headrace.errors import ModelFileError
from headrace.model.metadata import Metadata
from headrace.model.tensors import GgufTensor, TensorKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headrace.model.metadata import MetadataValue

# Limits far above any published model (the largest vocabularies have 262,144 tokens and half a
# million merges, the largest expert models some thousands of tensors). Together they bound what
# a hostile header can make us hold to some 400 MB.
MAX_HEADER_BYTES = 128 << 20
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ITEMS = 1 << 22  # array items, summed over the file
MAX_KEY_BYTES = 1 << 16
MAX_STRING_BYTES = 16 << 20
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32

_DAMAGED = "the file is truncated or damaged, fetch it again"


class _ValueType(IntEnum):
    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_NUMBER_FORMATS: dict[int, str] = {
    _ValueType.UINT8: "B",
    _ValueType.INT8: "b",
    _ValueType.UINT16: "H",
    _ValueType.INT16: "h",
    _ValueType.UINT32: "I",
    _ValueType.INT32: "i",
    _ValueType.FLOAT32: "f",
    _ValueType.BOOL: "?",
    _ValueType.UINT64: "Q",
    _ValueType.INT64: "q",
    _ValueType.FLOAT64: "d",
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """A checked model file; its tensors' bytes are mapped, not read."""

    path: Path
    architecture: str
    metadata: Metadata
    tensors: Mapping[str, GgufTensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extent:
    """A tensor's entry in the header: where its bytes lie, ``start`` counted from the data."""

    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class _Cursor:
    """Reads forward and never past the end of the file or the limits above."""

    def __init__(self, stream: BinaryIO, *, size: int, source: str) -> None:
        self._stream = stream
        self.size = size
        self.source = source
        self.position = 0
        self.items_left = MAX_ITEMS

    def take(self, count: int, what: str) -> bytes:
        """Return the next ``count`` bytes."""
        if count > self.size - self.position:
            raise self.error(
                f"{what} needs {count} bytes and {self.size - self.position} are left", _DAMAGED
            )
        if self.position + count > MAX_HEADER_BYTES:
            raise self.error(f"the header is longer than {MAX_HEADER_BYTES >> 20} MiB")
        found = self._stream.read(count)
        if len(found) != count:
            raise self.error(f"{what} could not be read whole", _DAMAGED)
        self.position += count
        return found

    def u32(self, what: str) -> int:
        """Return a number of 4 bytes."""
        number: int = _U32.unpack(self.take(4, what))[0]
        return number

    def u64(self, what: str) -> int:
        """Return a number of 8 bytes."""
        number: int = _U64.unpack(self.take(8, what))[0]
        return number

    def count(self, what: str, *, limit: int, least_bytes: int) -> int:
        """Return a count of things that take ``least_bytes`` each, if so many can be there."""
        count = self.u64(what)
        if count * least_bytes > self.size - self.position:
            raise self.error(f"{what} is {count}, more than the file can hold", _DAMAGED)
        if count > limit:
            raise self.error(f"{what} is {count}, over the limit of {limit}")
        return count

    def text(self, what: str, *, limit: int = MAX_STRING_BYTES) -> str:
        """Return a string."""
        length = self.u64(what)
        if length > limit:
            raise self.error(f"{what} is {length} bytes long, over the limit of {limit}", _DAMAGED)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not valid UTF-8", _DAMAGED) from None

    def error(self, problem: str, advice: str = "use another model file") -> ModelFileError:
        """Return what to raise: one line that names the file and the place in it."""
        return ModelFileError(f"{self.source}: byte {self.position}: {problem}; {advice}")


def read_gguf(path: Path) -> GgufFile:
    """Check a GGUF file and map its tensors. Raises ModelFileError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path}: not a regular file; name a .gguf file")
        with path.open("rb") as stream:
            cursor = _Cursor(stream, size=status.st_size, source=str(path))
            num_tensors, num_pairs = _read_preamble(cursor)
            metadata = Metadata(_read_pairs(cursor, num_pairs), source=cursor.source)
            extents = [_read_extent(cursor) for _ in range(num_tensors)]
        alignment = _read_alignment(cursor, metadata)
        data_start = -(-cursor.position // alignment) * alignment
        _check_extents(
            cursor, extents, alignment=alignment, data_bytes=max(cursor.size - data_start, 0)
        )
        return GgufFile(
            path=path,
            architecture=metadata.text("general.architecture"),
            metadata=metadata,
            tensors=_map_tensors(path, extents, data_start),
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelFileError(f"{path}: {reason}; name a readable .gguf file") from None


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    if cursor.size < 4 or cursor.take(4, "the magic number") != b"GGUF":
        raise cursor.error("not a GGUF file", "name a .gguf file")
    version = cursor.u32("the version")
    if version and version & 0xFFFF == 0:
        raise cursor.error("a big-endian GGUF file", "use the little-endian one")
    if version not in (2, 3):
        raise cursor.error(
            f"GGUF version {version} is not known (2 and 3 are)",
            "use a file converted by a current llama.cpp",
        )
    num_tensors = cursor.count("the number of tensors", limit=MAX_TENSORS, least_bytes=32)
    num_pairs = cursor.count("the number of metadata pairs", limit=MAX_PAIRS, least_bytes=13)
    return num_tensors, num_pairs


def _read_pairs(cursor: _Cursor, num_pairs: int) -> dict[str, MetadataValue]:
    pairs: dict[str, MetadataValue] = {}
    for _ in range(num_pairs):
        key = cursor.text("a metadata key", limit=MAX_KEY_BYTES)
        if key in pairs:
            raise cursor.error(f"metadata key {_quoted(key)} stands there twice")
        pairs[key] = _read_value(cursor, f"metadata {_quoted(key)}")
    return pairs


def _read_value(cursor: _Cursor, what: str) -> MetadataValue:
    value_type = cursor.u32(what)
    if value_type == _ValueType.STRING:
        return cursor.text(what)
    if value_type == _ValueType.ARRAY:
        return _read_array(cursor, what)
    value: MetadataValue = _read_numbers(cursor, value_type, 1, what)[0]
    return value


def _read_array(cursor: _Cursor, what: str) -> MetadataValue:
    item_type = cursor.u32(what)
    least_bytes = 8 if item_type == _ValueType.STRING else 1
    length = cursor.count(f"the length of {what}", limit=cursor.items_left, least_bytes=least_bytes)
    cursor.items_left -= length
    if item_type == _ValueType.STRING:
        text = cursor.text
        return tuple([text(what) for _ in range(length)])
    if item_type == _ValueType.ARRAY:
        raise cursor.error(f"{what} is a list of lists, which no supported model has")
    return _read_numbers(cursor, item_type, length, what)


def _read_numbers(
    cursor: _Cursor, value_type: int, count: int, what: str
) -> tuple[int, ...] | tuple[float, ...] | tuple[bool, ...]:
    number_format = _NUMBER_FORMATS.get(value_type)
    if number_format is None:
        raise cursor.error(f"{what} has the unknown type {value_type}", _DAMAGED)
    layout = f"<{count}{number_format}"
    return struct.unpack(layout, cursor.take(struct.calcsize(layout), what))


def _read_extent(cursor: _Cursor) -> _Extent:
    name = cursor.text("a tensor name", limit=MAX_KEY_BYTES)
    what = f"tensor {_quoted(name)}"
    num_dims = cursor.u32(what)
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.error(f"{what} has {num_dims} dimensions, not 1 to {MAX_DIMS}", _DAMAGED)
    shape = tuple(cursor.u64(what) for _ in range(num_dims))[::-1]  # the file has inputs first
    number = cursor.u32(what)
    try:
        kind = TensorKind(number)
    except ValueError:
        raise cursor.error(f"{what} has the unknown kind {number}") from None
    num_values = 1
    for length in shape:
        num_values *= length  # exact: Python's numbers do not overflow
    if num_values == 0 or shape[-1] % kind.block_values:
        raise cursor.error(f"{what} has the impossible shape {shape} for {kind.name}", _DAMAGED)
    return _Extent(
        name=name,
        kind=kind,
        shape=shape,
        start=cursor.u64(what),
        num_bytes=num_values // kind.block_values * kind.block_bytes,
    )


def _read_alignment(cursor: _Cursor, metadata: Metadata) -> int:
    alignment = metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
    if alignment > MAX_ALIGNMENT or alignment.bit_count() != 1:
        raise cursor.error(
            f"general.alignment is {alignment}, not a power of two up to {MAX_ALIGNMENT}", _DAMAGED
        )
    return alignment


def _check_extents(
    cursor: _Cursor, extents: list[_Extent], *, alignment: int, data_bytes: int
) -> None:
    names = {extent.name for extent in extents}
    if len(names) != len(extents):
        raise cursor.error("two tensors have the same name", _DAMAGED)
    free_from = 0
    for extent in sorted(extents, key=lambda extent: extent.start):
        what = f"tensor {_quoted(extent.name)}"
        if extent.start + extent.num_bytes > data_bytes:
            raise cursor.error(
                f"{what} ends {extent.start + extent.num_bytes} bytes into the tensor data, of "
                f"which there are {data_bytes}",
                _DAMAGED,
            )
        if extent.start < free_from:
            raise cursor.error(f"{what} overlaps another", _DAMAGED)
        if extent.start % alignment:
            raise cursor.error(
                f"{what} begins at {extent.start}, which is not aligned to {alignment}", _DAMAGED
            )
        free_from = extent.start + extent.num_bytes


def _map_tensors(path: Path, extents: list[_Extent], data_start: int) -> dict[str, GgufTensor]:
    mapped = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    tensors = {}
    for extent in extents:
        start = data_start + extent.start
        tensors[extent.name] = GgufTensor(
            name=extent.name,
            kind=extent.kind,
            shape=extent.shape,
            data=mapped[start : start + extent.num_bytes],
        )
    return tensors


def _quoted(name: str) -> str:
    """Make a name from the file fit for a terminal: escaped, and not endless."""
    return repr(name if len(name) <= 60 else name[:57] + "...")
