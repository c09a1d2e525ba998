"""The cache of repacked weights: what comes back is what went in, or it is built again."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.executor.openvino import weight_cache
from headrace.executor.openvino.repack import GATE_UP, QKV, ModelWeights, repacked
from headrace.executor.openvino.weight_cache import (
    DamagedCache,
    load_weights,
    read_weights,
    write_weights,
)
from headrace.executor.openvino.weights import Matrix, WeightForm
from headrace.model.gguf import GgufFile, read_gguf
from headrace.model.spec import ModelSpec, spec_from_gguf
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path

STORED = WeightForm.STORED


@pytest.fixture
def model(tmp_path: Path) -> tuple[GgufFile, ModelSpec]:
    file = read_gguf(write_tiny_gguf(tmp_path / "tiny.gguf"))
    return file, spec_from_gguf(file)


def assert_equal(weights: ModelWeights, model: tuple[GgufFile, ModelSpec]) -> None:
    entries = dict(repacked(*model, STORED, (QKV,)))
    assert entries.keys() == weights.matrices.keys() | weights.vectors.keys()
    for name, entry in entries.items():
        if not isinstance(entry, Matrix):
            assert np.array_equal(entry, weights.vectors[name])
            continue
        found = weights.matrices[name]
        assert (found.storage, found.shape) == (entry.storage, entry.shape)
        for one, other in (
            (found.values, entry.values),
            (found.scales, entry.scales),
            (found.zeros, entry.zeros),
        ):
            assert one is other is None or np.array_equal(one, other)  # type: ignore[arg-type]


def only_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_weights_come_back_as_they_were_and_are_built_once(
    model: tuple[GgufFile, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = load_weights(*model, STORED, (QKV,), tmp_path / "cache")
    monkeypatch.setattr(weight_cache, "repacked", None)
    second = load_weights(*model, STORED, (QKV,), tmp_path / "cache")
    assert first.digest == second.digest
    assert_equal(second, model)
    second.release_pages()
    assert_equal(second, model)


def test_another_form_other_stacks_or_another_file_have_files_of_their_own(
    model: tuple[GgufFile, ModelSpec], tmp_path: Path
):
    cache = tmp_path / "cache"
    load_weights(*model, STORED, (QKV,), cache)
    load_weights(*model, STORED, (QKV, GATE_UP), cache)
    load_weights(*model, WeightForm.DENSE, (QKV,), cache)
    assert len(list(cache.iterdir())) == 3
    os.utime(model[0].path, ns=(0, 0))
    load_weights(*model, STORED, (QKV,), cache)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("place", [0, 0.5, 0.97, -1], ids=["data", "data 2", "index", "trailer"])
def test_a_damaged_file_is_noticed_and_built_again(
    model: tuple[GgufFile, ModelSpec],
    tmp_path: Path,
    place: float,
    caplog: pytest.LogCaptureFixture,
):
    cache = tmp_path / "cache"
    load_weights(*model, STORED, (QKV,), cache)
    path = only_file(cache)
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if place >= 0 else -1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCache):
        read_weights(path)
    with caplog.at_level(logging.CRITICAL, weight_cache.__name__):
        assert_equal(load_weights(*model, STORED, (QKV,), cache), model)
    assert_equal(read_weights(only_file(cache)), model)


@pytest.mark.parametrize("length", [0, 10, 5000])
def test_a_truncated_file_is_noticed(
    model: tuple[GgufFile, ModelSpec], tmp_path: Path, length: int
):
    path = tmp_path / "some.weights"
    write_weights(path, repacked(*model, STORED, ()))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedCache):
        read_weights(path)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path):
    def entries():
        yield "one", np.zeros(3, np.float32)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_weights(tmp_path / "cache" / "a.weights", entries())
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_costs_a_warning_only(
    model: tuple[GgufFile, ModelSpec], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, weight_cache.__name__):
        weights = load_weights(*model, STORED, (QKV,), tmp_path / "file" / "cache")
    assert_equal(weights, model)
    assert "cannot be cached" in caplog.text
    weights.release_pages()


def test_files_used_longest_ago_are_removed(model: tuple[GgufFile, ModelSpec], tmp_path: Path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for age in range(5):
        path = cache / f"{age}.weights"
        path.write_bytes(b"old")
        os.utime(path, ns=(10**9 * (100 - age),) * 2)
    (cache / "half.partial").write_bytes(b"left behind")
    os.utime(cache / "half.partial", ns=(1, 1))
    (cache / "unrelated").write_bytes(b"not ours")
    load_weights(*model, STORED, (QKV,), cache)
    left = {path.name for path in cache.iterdir()}
    assert {"0.weights", "1.weights", "2.weights", "unrelated"} < left
    assert len(left) == weight_cache.MAX_FILES + 1
