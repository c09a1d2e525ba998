"""From a file's tensors to the entries of a graph: order of rows, stacks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from headrace.executor.openvino.repack import GATE_UP, QKV, repacked
from headrace.executor.openvino.weights import (
    Matrix,
    WeightForm,
    halves_from_pairs,
    weights_of,
)
from headrace.model.gguf import read_gguf
from headrace.model.spec import spec_from_gguf
from headrace.model.tensors import TensorKind, dequantize
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path

STORED = WeightForm.STORED


def test_rows_of_queries_and_keys_are_put_in_order_with_their_biases(tmp_path: Path):
    file = read_gguf(write_tiny_gguf(tmp_path / "t.gguf", architecture="qwen2"))
    spec = replace(spec_from_gguf(file), permuted_rope=True)
    entries = dict(repacked(file, spec, STORED, ()))
    for part, num_heads in (("attn_q", 4), ("attn_k", 2)):
        order = halves_from_pairs(num_heads, spec.head_dim)
        matrix, bias = entries[f"blk.1.{part}"], entries[f"blk.1.{part}.bias"]
        assert isinstance(matrix, Matrix)
        expected = dequantize(file.tensors[f"blk.1.{part}.weight"])[order]
        assert np.allclose(weights_of(matrix), expected, atol=1e-5)
        assert np.array_equal(bias, dequantize(file.tensors[f"blk.1.{part}.bias"])[order])
    untouched = entries["blk.1.attn_v.bias"]
    assert np.array_equal(untouched, dequantize(file.tensors["blk.1.attn_v.bias"]))


def test_stacks_replace_their_parts_where_these_are_of_one_make(tmp_path: Path):
    file = read_gguf(write_tiny_gguf(tmp_path / "t.gguf"))
    entries = dict(repacked(file, spec_from_gguf(file), STORED, (QKV, GATE_UP)))
    assert {"blk.0.attn_qkv", "blk.1.ffn_gate_up"} <= entries.keys()
    assert not {"blk.0.attn_q", "blk.0.attn_v", "blk.0.ffn_up"} & entries.keys()


def test_parts_of_different_makes_stay_apart(tmp_path: Path):
    file = read_gguf(write_tiny_gguf(tmp_path / "t.gguf"))
    other = read_gguf(write_tiny_gguf(tmp_path / "u.gguf", matrix_kind=TensorKind.Q8_0))
    name = "blk.0.attn_v.weight"
    mixed = replace(file, tensors={**file.tensors, name: other.tensors[name]})
    entries = dict(repacked(mixed, spec_from_gguf(file), STORED, (QKV,)))
    assert {"blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.1.attn_qkv"} <= entries.keys()
