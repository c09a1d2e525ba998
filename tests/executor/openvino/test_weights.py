"""Weights of every kind against the gguf package's own reading of their blocks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from headrace.executor.openvino.weights import (
    Matrix,
    Storage,
    WeightForm,
    halves_from_pairs,
    matrix_of,
    stacked,
    weights_of,
    whole_zeros,
)
from headrace.model.tensors import GgufTensor, TensorKind, dequantize

STORED = {
    TensorKind.F32: Storage.F32,
    TensorKind.F16: Storage.F16,
    TensorKind.BF16: Storage.BF16,
    TensorKind.Q4_0: Storage.I4,
    TensorKind.Q4_1: Storage.U4,
    TensorKind.Q5_0: Storage.I8,
    TensorKind.Q5_1: Storage.U8,
    TensorKind.Q8_0: Storage.I8,
    TensorKind.Q4_K: Storage.U4,
    TensorKind.Q5_K: Storage.U8,
    TensorKind.Q6_K: Storage.I8,
}
REQUANTISED = (TensorKind.Q2_K, TensorKind.Q3_K, TensorKind.IQ4_NL, TensorKind.MXFP4)
EXACT = {
    TensorKind.F32,
    TensorKind.F16,
    TensorKind.BF16,
    TensorKind.Q4_0,
    TensorKind.Q5_0,
    TensorKind.Q8_0,
}


def tensor_of(kind: TensorKind, rows: int = 24, inputs: int = 512, seed: int = 0) -> GgufTensor:
    """Return a tensor of random blocks: the quantisers of K-kinds do not exist in Python."""
    rng = np.random.default_rng(seed)
    num_blocks = inputs // kind.block_values
    if kind in (TensorKind.F32, TensorKind.F16, TensorKind.BF16):
        values = rng.standard_normal((rows, inputs)).astype(np.float32)
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind)).view(np.uint8)
    else:
        data = rng.integers(0, 256, (rows, num_blocks, kind.block_bytes), np.uint8)
        for start in _HALVES.get(kind, ()):  # scales must be sane numbers
            halves = (rng.uniform(0.5, 1.5, (rows, num_blocks)) / 64).astype(np.float16)
            data[..., start : start + 2] = halves[..., None].view(np.uint8)
    return GgufTensor(name="w", kind=kind, shape=(rows, inputs), data=data.reshape(-1))


_HALVES = {
    TensorKind.Q4_0: (0,),
    TensorKind.Q4_1: (0, 2),
    TensorKind.Q5_0: (0,),
    TensorKind.Q5_1: (0, 2),
    TensorKind.Q8_0: (0,),
    TensorKind.Q2_K: (80, 82),
    TensorKind.Q3_K: (108,),
    TensorKind.Q4_K: (0, 2),
    TensorKind.Q5_K: (0, 2),
    TensorKind.Q6_K: (208,),
    TensorKind.IQ4_NL: (0,),
}


def error_of(matrix: Matrix, truth: np.ndarray) -> float:
    """Return the largest error relative to the largest weight."""
    return float(np.abs(weights_of(matrix) - truth).max() / np.abs(truth).max())


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.name)
def test_stored_kinds_keep_their_values(kind: TensorKind):
    tensor = tensor_of(kind)
    matrix = matrix_of(tensor, WeightForm.STORED)
    assert matrix.storage is STORED[kind]
    assert matrix.shape == tensor.shape
    error = error_of(matrix, dequantize(tensor))
    assert error == 0 if kind in EXACT else error < 1e-6  # zero points are quotients


@pytest.mark.parametrize("kind", REQUANTISED, ids=lambda kind: kind.name)
def test_other_kinds_are_requantised_to_eight_bits(kind: TensorKind):
    tensor = tensor_of(kind)
    if kind is TensorKind.MXFP4:
        tensor.data.reshape(-1, 17)[:, 0] %= 120  # exponents without overflow
    matrix = matrix_of(tensor, WeightForm.STORED)
    assert matrix.storage is Storage.I8
    assert error_of(matrix, dequantize(tensor)) < 1 / 250


@pytest.mark.parametrize("kind", [TensorKind.Q4_1, TensorKind.Q6_K], ids=lambda kind: kind.name)
def test_dense_form_unpacks_to_float16(kind: TensorKind):
    tensor = tensor_of(kind)
    matrix = matrix_of(tensor, WeightForm.DENSE)
    assert matrix.storage is Storage.F16
    assert error_of(matrix, dequantize(tensor)) < 1 / 2000


def test_int8_widens_values_so_that_whole_zero_points_are_near():
    rng = np.random.default_rng(3)
    values = rng.standard_normal((24, 512)).astype(np.float32) * 0.05
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1).view(np.uint8)
    tensor = GgufTensor(name="w", kind=TensorKind.Q4_1, shape=values.shape, data=data.reshape(-1))
    matrix = matrix_of(tensor, WeightForm.INT8)
    assert matrix.storage is Storage.U8
    assert whole_zeros(matrix) is not None
    assert matrix.scales is not None
    error = np.abs(weights_of(matrix) - dequantize(tensor)).reshape(24, 16, 32).max(-1)
    steps = np.abs(dequantize(tensor)).reshape(24, 16, 32).max(-1) / 8
    assert (error / steps).max() < 0.06
    assert np.sqrt(((error / steps) ** 2).mean()) < 0.02


@pytest.mark.parametrize("kind", [TensorKind.Q4_1, TensorKind.Q5_1, TensorKind.Q5_K])
def test_int8_rounds_groups_on_one_side_of_zero_to_256_levels(kind: TensorKind):
    tensor = tensor_of(kind)
    matrix = matrix_of(tensor, WeightForm.INT8)
    assert whole_zeros(matrix) is not None
    assert error_of(matrix, dequantize(tensor)) < 1 / 250


@pytest.mark.parametrize("kind", [TensorKind.Q4_0, TensorKind.Q8_0, TensorKind.Q6_K])
def test_int8_leaves_what_has_no_zero_points(kind: TensorKind):
    tensor = tensor_of(kind)
    stored, int8 = (matrix_of(tensor, form) for form in (WeightForm.STORED, WeightForm.INT8))
    assert (stored.values == int8.values).all()
    assert stored.storage is int8.storage


def test_zero_points_of_the_file_are_not_whole():
    assert whole_zeros(matrix_of(tensor_of(TensorKind.Q5_1), WeightForm.STORED)) is None


@pytest.mark.parametrize("kind", [*STORED, *REQUANTISED[:2]], ids=lambda kind: kind.name)
def test_rows_can_be_reordered(kind: TensorKind):
    tensor = tensor_of(kind)
    order = np.random.default_rng(1).permutation(tensor.shape[0])
    plain = weights_of(matrix_of(tensor, WeightForm.STORED))
    assert (weights_of(matrix_of(tensor, WeightForm.STORED, order)) == plain[order]).all()


def test_groups_of_equal_values_keep_them():
    tensor = tensor_of(TensorKind.Q4_1, rows=2, inputs=64)
    blocks = tensor.data.reshape(4, 20)
    blocks[:, 0:2] = np.array([0, 0, 1e-7, 0], np.float16)[:, None].view(np.uint8)
    blocks[:, 2:4] = np.array([0.75, 0, -3, 0.01], np.float16)[:, None].view(np.uint8)
    truth = dequantize(tensor)
    assert np.abs(weights_of(matrix_of(tensor, WeightForm.STORED)) - truth).max() < 2e-3
    assert truth[0, 0] == 0.75


def test_matrices_of_one_make_stack_and_others_do_not():
    first, second = (
        matrix_of(tensor_of(TensorKind.Q4_1, seed=seed), WeightForm.STORED) for seed in (1, 2)
    )
    together = stacked([first, second])
    assert together is not None
    assert (weights_of(together) == np.concatenate([weights_of(first), weights_of(second)])).all()
    other = matrix_of(tensor_of(TensorKind.Q8_0), WeightForm.STORED)
    assert stacked([first, other]) is None


def test_halves_from_pairs_collects_even_rows_then_odd_ones_per_head():
    assert halves_from_pairs(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
