"""Reading GGUF: the same as the gguf package on sound files, one clear line on all others."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ModelFileError
from headrace.model import gguf as ours
from headrace.model.gguf import read_gguf
from headrace.model.tensors import TensorKind, dequantize
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path

U32, STRING, ARRAY = 4, 8, 9
HUGE = 2**63 - 1


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))


def tensor(name: str, dims: tuple[int, ...] = (8,), *, kind: int = 0, start: int = 0) -> bytes:
    layout = f"<I{len(dims)}QIQ"
    return text(name) + struct.pack(layout, len(dims), *dims, kind, start)


def build(
    *,
    pairs: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = (),
    data: bytes = bytes(256),
    start: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_pairs: int | None = None,
) -> bytes:
    header = start + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(pairs) if num_pairs is None else num_pairs,
    )
    header += b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


HOSTILE = {
    "an empty file": (b"", "not a GGUF file"),
    "another kind of file": (build(start=b"PK\3\4"), "not a GGUF file"),
    "an old version": (build(version=1), "version 1 is not known"),
    "a big-endian file": (build(version=3 << 24), "big-endian"),
    "more pairs than bytes": (build(num_pairs=HUGE), "number of metadata pairs is"),
    "more tensors than bytes": (build(num_tensors=HUGE), "number of tensors is"),
    "too many pairs": (build(num_pairs=70_000, data=bytes(1 << 20)), "over the limit of 65536"),
    "a key without end": (
        build(pairs=(struct.pack("<Q", HUGE),), num_pairs=1),
        f"is {HUGE} bytes long",
    ),
    "a string longer than the file": (
        build(pairs=(text("k") + struct.pack("<IQ", STRING, 5000),), num_pairs=1),
        "needs 5000 bytes and",
    ),
    "a string that is not UTF-8": (
        build(pairs=(pair("k", STRING, text(b"\xff\xfe")),)),
        "not valid UTF-8",
    ),
    "an array longer than the file": (
        build(pairs=(pair("k", ARRAY, struct.pack("<IQ", U32, HUGE)),)),
        "more than the file can hold",
    ),
    "an array of too many items": (
        build(pairs=(pair("k", ARRAY, struct.pack("<IQ", 0, 5_000_000)),), data=bytes(5_000_000)),
        "over the limit of 4194304",
    ),
    "arrays that are too much together": (
        build(
            pairs=tuple(
                pair(key, ARRAY, struct.pack("<IQ", 0, 3_000_000) + bytes(3_000_000))
                for key in ("a", "b")
            ),
        ),
        "over the limit of 1194304",
    ),
    "an array of arrays": (
        build(pairs=(pair("k", ARRAY, struct.pack("<IQIQ", ARRAY, 1, U32, 0)),)),
        "list of lists",
    ),
    "an unknown type of value": (build(pairs=(pair("k", 77, b""),)), "unknown type 77"),
    "an unknown type of item": (
        build(pairs=(pair("k", ARRAY, struct.pack("<IQ", 13, 1)),)),
        "unknown type 13",
    ),
    "a key that comes twice": (build(pairs=(ARCHITECTURE, ARCHITECTURE)), "stands there twice"),
    "no architecture": (build(pairs=()), "has no 'general.architecture'"),
    "an architecture that is a number": (
        build(pairs=(pair("general.architecture", U32, struct.pack("<I", 7)),)),
        "is '7', not a string",
    ),
    "an alignment of zero": (
        build(pairs=(ARCHITECTURE, pair("general.alignment", U32, bytes(4)))),
        "general.alignment is 0",
    ),
    "an odd alignment": (
        build(pairs=(ARCHITECTURE, pair("general.alignment", U32, struct.pack("<I", 24)))),
        "not a power of two",
    ),
    "no dimensions": (build(tensors=(tensor("t", ()),)), "has 0 dimensions"),
    "too many dimensions": (build(tensors=(tensor("t", (1,) * 5),)), "has 5 dimensions"),
    "a dimension of zero": (build(tensors=(tensor("t", (0, 4)),)), "impossible shape"),
    "a product that overflows 64 bits": (
        build(tensors=(tensor("t", (2**33, 2**33)),)),
        "bytes into the tensor data, of which there are 256",
    ),
    "rows of broken blocks": (build(tensors=(tensor("t", (33,), kind=3),)), "impossible shape"),
    "an unknown kind of tensor": (build(tensors=(tensor("t", kind=99),)), "unknown kind 99"),
    "a removed kind of tensor": (build(tensors=(tensor("t", kind=4),)), "unknown kind 4"),
    "two tensors of one name": (
        build(tensors=(tensor("t"), tensor("t", start=32))),
        "the same name",
    ),
    "tensors that overlap": (
        build(tensors=(tensor("a", (16,)), tensor("b", start=32))),
        "'b' overlaps another",
    ),
    "a tensor out of alignment": (build(tensors=(tensor("t", start=8),)), "not aligned to 32"),
    "a tensor past the end": (build(tensors=(tensor("t", start=256),)), "there are 256"),
    "an offset at the end of the numbers": (
        build(tensors=(tensor("t", start=2**64 - 32),)),
        "there are 256",
    ),
    "a name that plays with the terminal": (
        build(tensors=(tensor("\x1b[2J\n", kind=99),)),
        r"tensor '\x1b[2J\n' has",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_ends_in_one_clear_line(case: str, tmp_path: Path):
    content, problem = HOSTILE[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert problem in message
    assert message.startswith(str(path))
    assert "; " in message, "says what to do"
    assert "\n" not in message


def test_a_small_sound_file_is_read(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(
        build(
            pairs=(ARCHITECTURE, pair("k", ARRAY, struct.pack("<IQ2I", U32, 2, 5, 6))),
            tensors=(tensor("a", (4, 2)), tensor("b", (2,), start=32)),
            data=np.arange(16, dtype="<f4").tobytes(),
        )
    )
    file = read_gguf(path)
    assert file.architecture == "llama"
    assert file.metadata["k"] == (5, 6)
    assert file.tensors["a"].shape == (2, 4)
    assert dequantize(file.tensors["a"]).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert dequantize(file.tensors["b"]).tolist() == [8, 9]


def test_tensor_bytes_cannot_be_written(tiny_path: Path):
    data = read_gguf(tiny_path).tensors["token_embd.weight"].data
    assert not data.flags.writeable


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", [TensorKind.F32, TensorKind.Q4_1, TensorKind.Q8_0])
def test_the_gguf_package_reads_the_same(architecture: str, kind: TensorKind, tmp_path: Path):
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf",
        architecture=architecture,  # type: ignore[arg-type]
        matrix_kind=kind,
        embedding_kind=kind,
        tied=False,
    )
    mine, theirs = read_gguf(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items()}
    assert dict(mine.metadata) == {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in fields.items()
        if not key.startswith("GGUF.")
    }
    assert list(mine.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = mine.tensors[tensor.name]
        assert found.kind == tensor.tensor_type
        assert found.shape == tuple(int(length) for length in reversed(tensor.shape))
        assert np.array_equal(found.data, tensor.data.reshape(-1).view(np.uint8))


def test_the_table_of_kinds_is_that_of_the_gguf_package():
    for kind in TensorKind:
        theirs = gguf.GGMLQuantizationType[kind.name]
        assert (kind.block_values, kind.block_bytes) == gguf.GGML_QUANT_SIZES[theirs]
        assert int(kind) == theirs


def test_every_truncation_ends_in_one_clear_line(tiny_path: Path, tmp_path: Path):
    content = tiny_path.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(400), *range(400, len(content), 499), len(content) - 33]:
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError):
            read_gguf(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_within_bounded_memory(
    tiny_path: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    content = bytearray(tiny_path.read_bytes())
    header = 12_000  # where its metadata and tensor table lie
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header))
        damage = data.draw(st.binary(min_size=1, max_size=12) | st.just(b"\xff" * 8))
        content[place : place + len(damage)] = damage
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with contextlib.suppress(ModelFileError):
            read_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_the_header_itself_has_a_limit(tiny_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ours, "MAX_HEADER_BYTES", 1 << 10)
    with pytest.raises(ModelFileError, match="the header is longer than"):
        read_gguf(tiny_path)


def test_a_missing_file_says_so(tmp_path: Path):
    with pytest.raises(ModelFileError, match="No such file or directory; name a readable"):
        read_gguf(tmp_path / "none.gguf")


def test_a_directory_or_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ModelFileError, match="not a regular file"):
            read_gguf(path)
