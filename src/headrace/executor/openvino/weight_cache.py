"""Repacked weights kept in files of our own, so that a second start maps them instead.

(The compiled graph itself cannot be kept: OpenVINO 2026.4 neither exports nor reloads a graph
with this attention.) A file is the arrays, each at a multiple of 64 bytes, then an index (JSON),
then a trailer: crc32 and length of the index, and a magic number that names the version. Files
are written aside and renamed, so a reader sees all or nothing; one that is damaged all the same
is built again. The directory is bounded: the files used longest ago go.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from headrace.executor.openvino.repack import ModelWeights, repacked
from headrace.executor.openvino.weights import Matrix, Storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from headrace.executor.openvino.repack import Stack
    from headrace.executor.openvino.weights import WeightForm
    from headrace.model.gguf import GgufFile
    from headrace.model.spec import ModelSpec

MAX_FILES = 4
_MAGIC = b"HRWT0001"  # to be counted up when the layout or the repacking changes
_TRAILER = struct.Struct("<IQ8s")  # crc32 of the index, its length, magic
_ALIGNMENT = 64
_SUFFIX = ".weights"
_log = logging.getLogger(__name__)


class DamagedCache(Exception):
    """A file of the cache does not hold what it should."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """An array in the file."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    crc32: int


def load_weights(
    file: GgufFile,
    spec: ModelSpec,
    form: WeightForm,
    stacks: Sequence[Stack],
    cache_dir: Path,
) -> ModelWeights:
    """Return a model's weights, mapped from the cache; built first where it does not have them.

    A cache that cannot be written costs a warning and the time at every start.
    """
    path = cache_dir / (_key(file.path, form, stacks) + _SUFFIX)
    try:
        weights = read_weights(path)
        os.utime(path)
        return weights
    except FileNotFoundError:
        pass
    except (DamagedCache, OSError) as error:
        _log.warning("cached weights %s are not usable (%s) and are built again", path, error)
    try:
        write_weights(path, repacked(file, spec, form, stacks))
        _remove_oldest(cache_dir)
        return read_weights(path)
    except OSError as error:
        _log.warning("weights cannot be cached in %s: %s", cache_dir, error.strerror)
        return _in_memory(repacked(file, spec, form, stacks))


def write_weights(
    path: Path, entries: Iterable[tuple[str, Matrix | npt.NDArray[np.float32]]]
) -> None:
    """Write entries to ``path``, all or nothing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as stream:
            index = {name: _write_entry(stream, entry) for name, entry in entries}
            text = json.dumps(index).encode()
            stream.write(text + _TRAILER.pack(zlib.crc32(text), len(text), _MAGIC))
            stream.flush()
            os.fsync(stream.fileno())
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def read_weights(path: Path) -> ModelWeights:
    """Map the weights in ``path``. Raises OSError, DamagedCache."""
    if path.stat().st_size < _TRAILER.size:
        raise DamagedCache("too short")
    with path.open("rb") as stream:
        mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    mapped = np.frombuffer(mapping, np.uint8)
    checksum, length, magic = _TRAILER.unpack(mapped[-_TRAILER.size :].tobytes())
    end = mapped.size - _TRAILER.size
    if magic != _MAGIC or length > end:
        raise DamagedCache("another version, or truncated")
    text = mapped[end - length : end].tobytes()
    if zlib.crc32(text) != checksum:
        raise DamagedCache("the index is damaged")
    matrices, vectors = _assemble(mapped, json.loads(text))
    digest = hashlib.sha256(text).hexdigest()
    return ModelWeights(matrices=matrices, vectors=vectors, digest=digest, mapping=mapping)


def _key(path: Path, form: WeightForm, stacks: Sequence[Stack]) -> str:
    """Name the file, its state and what is made of it."""
    status = path.stat()
    made = f"{form}|{[stack.name for stack in stacks]}"
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{made}"
    return f"{path.stem[:40]}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"


def _write_entry(stream: BinaryIO, entry: Matrix | npt.NDArray[np.float32]) -> dict[str, Any]:
    if not isinstance(entry, Matrix):
        return {"vector": _write_array(stream, entry)}
    return {
        "storage": entry.storage,
        "shape": entry.shape,
        "values": _write_array(stream, entry.values),
        "scales": None if entry.scales is None else _write_array(stream, entry.scales),
        "zeros": None if entry.zeros is None else _write_array(stream, entry.zeros),
    }


def _write_array(stream: BinaryIO, array: npt.NDArray[Any]) -> list[Any]:
    stream.write(bytes(-stream.tell() % _ALIGNMENT))
    content = np.ascontiguousarray(array)
    placed = [stream.tell(), content.dtype.str, content.shape, zlib.crc32(content.data)]
    stream.write(content.data)
    return placed


def _assemble(
    mapped: npt.NDArray[np.uint8], index: dict[str, dict[str, Any]]
) -> tuple[dict[str, Matrix], dict[str, npt.NDArray[np.float32]]]:
    matrices, vectors = {}, {}
    for name, entry in index.items():
        if "vector" in entry:
            vectors[name] = _array(mapped, entry["vector"])
            continue
        matrices[name] = Matrix(
            storage=Storage(entry["storage"]),
            shape=(entry["shape"][0], entry["shape"][1]),
            values=_array(mapped, entry["values"]),
            scales=None if entry["scales"] is None else _array(mapped, entry["scales"]),
            zeros=None if entry["zeros"] is None else _array(mapped, entry["zeros"]),
        )
    return matrices, vectors


def _array(mapped: npt.NDArray[np.uint8], placed: list[Any]) -> npt.NDArray[Any]:
    where = _Placed(*placed)
    dtype = np.dtype(where.dtype)
    size = int(np.prod(where.shape)) * dtype.itemsize
    raw = mapped[where.offset : where.offset + size]
    if zlib.crc32(raw.data) != where.crc32:
        raise DamagedCache(f"the array at byte {where.offset} is damaged")
    return raw.view(dtype).reshape(where.shape)


def _in_memory(entries: Iterable[tuple[str, Matrix | npt.NDArray[np.float32]]]) -> ModelWeights:
    matrices, vectors, digest = {}, {}, hashlib.sha256()
    for name, entry in entries:
        digest.update(name.encode())
        if isinstance(entry, Matrix):
            matrices[name] = entry
            digest.update(entry.values.data)
        else:
            vectors[name] = entry
            digest.update(entry.data)
    return ModelWeights(matrices=matrices, vectors=vectors, digest=digest.hexdigest())


def _remove_oldest(directory: Path) -> None:
    """Keep the files used last; what a killed process left half written counts as well."""
    files = [p for p in directory.iterdir() if p.suffix in (_SUFFIX, ".partial")]
    files.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    for path in files[MAX_FILES:]:
        path.unlink(missing_ok=True)
