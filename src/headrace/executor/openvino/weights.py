"""GGUF tensors as matrices that OpenVINO's CPU plugin multiplies without unpacking them first.

A quantised matrix becomes an *affine group* matrix: within a group of G neighbouring inputs

    w[o, g * G + j] = (values[o, g, j] - zeros[o, g]) * scales[o, g]

which holds the blocks of a file exactly, up to float32 rounding. Zero points stay real numbers:
rounding them to integers, which would let the plugin compute in int8, ruins Q4_1 files (a KL
divergence of 0.30 on the check set), and rounding them to float16 is visible too. In 8 bits there
is room for both: see ``widened``.

Block layouts: ggml's ggml-common.h; checked in tests against the ``gguf`` package.
Shape suffixes: O outputs, I inputs, N groups of a row, G inputs of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.model.tensors import TensorKind, dequantize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.model.tensors import GgufTensor

U8: TypeAlias = npt.NDArray[np.uint8]
F32: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = npt.NDArray[np.intp]

_LARGEST_ZERO = 1e6  # beyond it the values of a group differ by less than float32 can tell
_MOST_FACTORS = 255 // 15  # with which the values of 4 bits still fit a byte
_LARGEST_SHIFT = 0.03  # of a zero point, in steps of the file: 256 levels are as good
_FALLBACK_GROUP = 32  # inputs that share a scale when a kind is requantised to 8 bits


class Storage(StrEnum):
    """How one value lies in ``Matrix.values``; two 4-bit values share a byte, the first low."""

    U4 = "u4"
    I4 = "i4"
    U8 = "u8"
    I8 = "i8"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"


class WeightForm(StrEnum):
    """What becomes of a file's quantised matrices."""

    STORED = "stored"  # they stay as the file has them
    DENSE = "dense"  # they are unpacked to float16: much memory
    INT8 = "int8"  # they are widened to 8 bits, and inputs are rounded to 8 bits as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A weight matrix [O, I]. ``scales`` and ``zeros`` are [O, N], or None for 1 and 0."""

    storage: Storage
    shape: tuple[int, int]
    values: U8  # raw bytes, [O, bytes of a row]
    scales: F32 | None = None
    zeros: F32 | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all its arrays."""
        parts = (self.values, self.scales, self.zeros)
        return sum(part.nbytes for part in parts if part is not None)


def matrix_of(tensor: GgufTensor, form: WeightForm, rows: Rows | None = None) -> Matrix:
    """Return a tensor [O, I] as a Matrix, its rows reordered by ``rows``.

    Kinds without a group form that OpenVINO holds (Q2_K, Q3_K, IQ*, MXFP4 ..) are requantised
    to 8 bits in groups of 32, which adds less than 1/250 of a group's largest weight.
    """
    dense = _DENSE.get(tensor.kind)
    if dense is not None:
        values = _rows_of(tensor, rows)
        return Matrix(storage=dense, shape=_shape(tensor), values=np.ascontiguousarray(values))
    if form is WeightForm.DENSE:
        halves_OI = _dequantized(tensor, rows).astype(np.float16)
        return Matrix(storage=Storage.F16, shape=_shape(tensor), values=halves_OI.view(np.uint8))
    unpack = _UNPACK.get(tensor.kind)
    if unpack is None:
        return _requantised(_dequantized(tensor, rows))
    num_blocks = tensor.shape[1] // tensor.kind.block_values
    blocks = _rows_of(tensor, rows).reshape(tensor.shape[0], num_blocks, tensor.kind.block_bytes)
    matrix = unpack(blocks)
    return widened(matrix) if form is WeightForm.INT8 else matrix


def widened(matrix: Matrix) -> Matrix:
    """Return an affine matrix with 8-bit values and whole zero points, so that int8 can multiply.

    A group's values are multiplied by a whole number k, and so stay exact; of all k that fit a
    byte it takes the one for which ``k * zero`` is nearest to a whole number: zero points are then
    off by 0.007 of a step (rms), where 4 bits would be off by 0.29. A group that has no such k
    (its weights lie on one side of 0, say) is rounded to 256 levels. One without zero points
    stays.
    """
    scales_ON, zeros_ON = matrix.scales, matrix.zeros
    if scales_ON is None or zeros_ON is None:
        return matrix
    values_ONG = _numbers(matrix).reshape(*scales_ON.shape, -1)
    factors_ON = _factors(values_ONG.max(-1), zeros_ON)
    lost_ON = factors_ON == 0
    if lost_ON.any():
        weights_ONG = (values_ONG - zeros_ON[..., None]) * scales_ON[..., None]
        low, high = np.minimum(weights_ONG.min(-1), 0), np.maximum(weights_ONG.max(-1), 0)
        steps_ON = np.maximum((high - low) / np.float32(255), np.finfo(np.float32).tiny)
        scales_ON = np.where(lost_ON, steps_ON, scales_ON)
        zeros_ON = np.where(lost_ON, -low / steps_ON, zeros_ON)
        levels_ONG = weights_ONG / steps_ON[..., None] + np.rint(zeros_ON)[..., None]
        values_ONG = np.where(lost_ON[..., None], levels_ONG, values_ONG)
        factors_ON = np.where(lost_ON, np.float32(1), factors_ON)
    wide_ONG = np.clip(np.rint(values_ONG * factors_ON[..., None]), 0, 255).astype(np.uint8)
    zeros_ON = np.rint(zeros_ON * factors_ON)
    return _grouped(wide_ONG, scales_ON / factors_ON, Storage.U8, zeros_ON)


def whole_zeros(matrix: Matrix) -> U8 | None:
    """Return zero points that are bytes as such, None for others."""
    zeros = matrix.zeros
    if zeros is None or matrix.storage is not Storage.U8:
        return None
    whole = zeros.astype(np.uint8) if ((zeros >= 0) & (zeros <= 255)).all() else None
    return whole if whole is not None and (whole == zeros).all() else None


def weights_of(matrix: Matrix) -> F32:
    """Return a Matrix as numbers, [O, I]: what the graph will multiply by."""
    values = _numbers(matrix)
    if matrix.scales is None:
        return values
    groups_ONG = values.reshape(*matrix.scales.shape, -1)
    shifted = groups_ONG if matrix.zeros is None else groups_ONG - matrix.zeros[..., None]
    return (shifted * matrix.scales[..., None]).reshape(matrix.shape)


def stacked(matrices: Sequence[Matrix]) -> Matrix | None:
    """Return matrices of the same inputs as one, outputs after each other; None if they differ."""
    first = matrices[0]
    for other in matrices:
        groups = None if other.scales is None else other.scales.shape[1]
        first_groups = None if first.scales is None else first.scales.shape[1]
        same_zeros = (other.zeros is None) == (first.zeros is None)
        if other.storage is not first.storage or groups != first_groups or not same_zeros:
            return None
    return Matrix(
        storage=first.storage,
        shape=(sum(m.shape[0] for m in matrices), first.shape[1]),
        values=np.concatenate([m.values for m in matrices]),
        scales=None if first.scales is None else _joined([m.scales for m in matrices]),
        zeros=None if first.zeros is None else _joined([m.zeros for m in matrices]),
    )


def halves_from_pairs(num_heads: int, head_dim: int) -> Rows:
    """Return the row order that turns rotation of neighbours into rotation of halves."""
    rows = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    order: Rows = rows.swapaxes(1, 2).reshape(-1)
    return order


def _joined(parts: Sequence[F32 | None]) -> F32:
    return np.concatenate([part for part in parts if part is not None])


def _shape(tensor: GgufTensor) -> tuple[int, int]:
    outputs, inputs = tensor.shape
    return outputs, inputs


def _dequantized(tensor: GgufTensor, rows: Rows | None) -> F32:
    whole = dequantize(tensor)
    return whole if rows is None else whole[rows]


def _rows_of(tensor: GgufTensor, rows: Rows | None) -> U8:
    whole = tensor.data.reshape(tensor.shape[0], -1)
    return whole if rows is None else whole[rows]


def _numbers(matrix: Matrix) -> F32:
    """Return the stored values as float32, [O, I]."""
    raw = matrix.values
    match matrix.storage:
        case Storage.U4 | Storage.I4:
            nibbles = np.stack([raw & 15, raw >> 4], axis=-1).reshape(matrix.shape).astype(np.int8)
            if matrix.storage is Storage.I4:
                nibbles = (nibbles ^ 8) - 8
            return nibbles.astype(np.float32)
        case Storage.U8:
            return raw.astype(np.float32)
        case Storage.I8:
            return raw.view(np.int8).astype(np.float32)
        case Storage.BF16:
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        case Storage.F16:
            return raw.view(np.float16).astype(np.float32)
        case Storage.F32:
            return raw.view(np.float32)


def _affine(values_ONG: U8, scales_ON: F32, offsets_ON: F32, storage: Storage) -> Matrix:
    """Return ``values * scale + offset`` with its zero point, ``-offset / scale``.

    A group whose values are all (nearly) equal has no usable scale: it becomes 0 - (-1) times
    that value.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zeros_ON = -offsets_ON / scales_ON
    flat_ON = ~(np.abs(zeros_ON) <= _LARGEST_ZERO)
    if flat_ON.any():
        zeros_ON = np.where(flat_ON, np.float32(-1), zeros_ON)
        scales_ON = np.where(flat_ON, offsets_ON, scales_ON)
        values_ONG = np.where(flat_ON[..., None], np.uint8(0), values_ONG)
    return _grouped(values_ONG, scales_ON, storage, zeros_ON)


def _factors(highest_ON: F32, zeros_ON: F32) -> F32:
    """Return for each group the k of ``widened``, 0 for one that has none."""
    least_ON = np.full(zeros_ON.shape, _LARGEST_SHIFT, np.float32)
    factors_ON = np.zeros(zeros_ON.shape, np.float32)
    for k in range(1, _MOST_FACTORS + 1):
        whole_ON = np.rint(k * zeros_ON)
        fits_ON = (k * highest_ON <= 255) & (whole_ON >= 0) & (whole_ON <= 255)
        error_ON = np.where(fits_ON, np.abs(whole_ON / k - zeros_ON), np.inf)
        factors_ON = np.where(error_ON < least_ON, np.float32(k), factors_ON)
        least_ON = np.minimum(error_ON, least_ON)
    return factors_ON


def _grouped(
    values_ONG: npt.NDArray[np.uint8] | npt.NDArray[np.int8],
    scales_ON: F32,
    storage: Storage,
    zeros_ON: F32 | None = None,
) -> Matrix:
    outputs, groups, group = values_ONG.shape
    raw = values_ONG.reshape(outputs, -1).view(np.uint8)
    if storage in (Storage.U4, Storage.I4):
        raw = (raw[:, 0::2] & np.uint8(15)) | (raw[:, 1::2] << np.uint8(4))
    return Matrix(
        storage=storage,
        shape=(outputs, groups * group),
        values=np.ascontiguousarray(raw),
        scales=np.ascontiguousarray(scales_ON),
        zeros=None if zeros_ON is None else np.ascontiguousarray(zeros_ON),
    )


def _half(blocks: U8, start: int) -> F32:
    """Return the float16 that each block holds at byte ``start``."""
    values: F32 = blocks[..., start : start + 2].copy().view(np.float16)[..., 0].astype(np.float32)
    return values


def _nibbles(packed: U8) -> U8:
    """Return first all low, then all high nibbles of the last axis."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(packed: U8) -> U8:
    """Return 32 bits of 4 bytes as 0 or 16 each."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: U8) -> Matrix:
    signed = _nibbles(blocks[..., 2:]) ^ 8  # q - 8 in two's complement
    return _grouped(signed, _half(blocks, 0), Storage.I4)


def _q4_1(blocks: U8) -> Matrix:
    return _affine(_nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2), Storage.U4)


def _q5_0(blocks: U8) -> Matrix:
    values = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return _grouped(values.view(np.int8) - np.int8(16), _half(blocks, 0), Storage.I8)


def _q5_1(blocks: U8) -> Matrix:
    values = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return _affine(values, _half(blocks, 0), _half(blocks, 2), Storage.U8)


def _q8_0(blocks: U8) -> Matrix:
    return _grouped(np.ascontiguousarray(blocks[..., 2:]), _half(blocks, 0), Storage.I8)


def _k_scales(blocks: U8) -> tuple[F32, F32]:
    """Return scales and offsets of the 8 sub-blocks of Q4_K and Q5_K blocks, [O, N]."""
    low, mid, high = np.split(blocks[..., 4:16], 3, axis=-1)
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 2) & 48)], axis=-1)
    minima = np.concatenate([mid & 63, (high >> 4) | ((mid >> 2) & 48)], axis=-1)
    outputs = blocks.shape[0]
    return (
        (_half(blocks, 0)[..., None] * scales).reshape(outputs, -1),
        (_half(blocks, 2)[..., None] * minima).reshape(outputs, -1) * np.float32(-1),
    )


def _k_nibbles(packed: U8) -> U8:
    """Return the 8 x 32 nibbles of 128 bytes: of each 32 bytes all low ones, then all high."""
    return _nibbles(packed.reshape(*packed.shape[:-1], 4, 32)).reshape(packed.shape[0], -1, 32)


def _q4_k(blocks: U8) -> Matrix:
    return _affine(_k_nibbles(blocks[..., 16:]), *_k_scales(blocks), Storage.U4)


def _q5_k(blocks: U8) -> Matrix:
    bits = (blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    fifth = bits.reshape(blocks.shape[0], -1, 32) << np.uint8(4)
    return _affine(_k_nibbles(blocks[..., 48:]) | fifth, *_k_scales(blocks), Storage.U8)


def _q6_k(blocks: U8) -> Matrix:
    outputs, num_blocks, _ = blocks.shape
    low = _nibbles(blocks[..., :128].reshape(outputs, num_blocks, 2, 64))
    shifts = np.array([[0], [2], [4], [6]], np.uint8)
    high = (blocks[..., 128:192].reshape(outputs, num_blocks, 2, 1, 32) >> shifts) & 3
    values = low.reshape(outputs, -1, 16) | (high.reshape(outputs, -1, 16) << 4)
    scales = blocks[..., 192:208].copy().view(np.int8) * _half(blocks, 208)[..., None]
    return _grouped(values.view(np.int8) - np.int8(32), scales.reshape(outputs, -1), Storage.I8)


def _requantised(values_OI: F32) -> Matrix:
    groups_ONG = values_OI.reshape(values_OI.shape[0], -1, _FALLBACK_GROUP)
    scales_ON = np.abs(groups_ONG).max(-1) / np.float32(127)
    divisors = np.where(scales_ON == 0, np.float32(1), scales_ON)[..., None]
    levels = np.clip(np.rint(groups_ONG / divisors), -127, 127).astype(np.int8)
    return _grouped(levels, scales_ON, Storage.I8)


_DENSE = {
    TensorKind.F32: Storage.F32,
    TensorKind.F16: Storage.F16,
    TensorKind.BF16: Storage.BF16,
}
_UNPACK: dict[TensorKind, Callable[[U8], Matrix]] = {
    TensorKind.Q4_0: _q4_0,
    TensorKind.Q4_1: _q4_1,
    TensorKind.Q5_0: _q5_0,
    TensorKind.Q5_1: _q5_1,
    TensorKind.Q8_0: _q8_0,
    TensorKind.Q4_K: _q4_k,
    TensorKind.Q5_K: _q5_k,
    TensorKind.Q6_K: _q6_k,
}
