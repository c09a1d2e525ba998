"""Kinds of tensor data in a GGUF file: how many values a block holds, and in how many bytes.

Source: the GGML type table of the GGUF specification (ggml-org/ggml, docs/gguf.md) and its block
structures; a test holds this table against the ``gguf`` package. Decoding blocks into numbers is
that package's work (extra ``engine``), which is imported only when asked for: a gateway reads
metadata and never comes here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from headrace.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class TensorKind(IntEnum):
    """How a tensor's values are stored; the numbers are GGML's."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39

    @property
    def block_values(self) -> int:
        """Values in one block; rows hold whole blocks."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _BLOCKS[self][1]


_BLOCKS: dict[TensorKind, tuple[int, int]] = {
    TensorKind.F32: (1, 4),
    TensorKind.F16: (1, 2),
    TensorKind.Q4_0: (32, 18),
    TensorKind.Q4_1: (32, 20),
    TensorKind.Q5_0: (32, 22),
    TensorKind.Q5_1: (32, 24),
    TensorKind.Q8_0: (32, 34),
    TensorKind.Q8_1: (32, 40),
    TensorKind.Q2_K: (256, 84),
    TensorKind.Q3_K: (256, 110),
    TensorKind.Q4_K: (256, 144),
    TensorKind.Q5_K: (256, 176),
    TensorKind.Q6_K: (256, 210),
    TensorKind.Q8_K: (256, 292),
    TensorKind.IQ2_XXS: (256, 66),
    TensorKind.IQ2_XS: (256, 74),
    TensorKind.IQ3_XXS: (256, 98),
    TensorKind.IQ1_S: (256, 50),
    TensorKind.IQ4_NL: (32, 18),
    TensorKind.IQ3_S: (256, 110),
    TensorKind.IQ2_S: (256, 82),
    TensorKind.IQ4_XS: (256, 136),
    TensorKind.I8: (1, 1),
    TensorKind.I16: (1, 2),
    TensorKind.I32: (1, 4),
    TensorKind.I64: (1, 8),
    TensorKind.F64: (1, 8),
    TensorKind.IQ1_M: (256, 56),
    TensorKind.BF16: (1, 2),
    TensorKind.TQ1_0: (256, 54),
    TensorKind.TQ2_0: (256, 66),
    TensorKind.MXFP4: (32, 17),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor as it lies in the file.

    ``shape`` is in numpy order: a weight matrix is (outputs, inputs). ``data`` are its raw bytes,
    a read-only view of the mapped file; they are read from disk when they are touched.
    """

    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


def dequantize(tensor: GgufTensor) -> npt.NDArray[np.float32]:
    """Return the tensor's values, float32, in its shape. Raises MissingExtra without ``gguf``."""
    try:
        import gguf
    except ImportError:
        raise MissingExtra(
            "reading weights needs the gguf package: pip install 'headrace[engine]'"
        ) from None
    kind = gguf.GGMLQuantizationType(tensor.kind)
    row_bytes = tensor.shape[-1] // tensor.kind.block_values * tensor.kind.block_bytes
    rows = tensor.data.reshape(*tensor.shape[:-1], row_bytes)
    values: npt.NDArray[np.float32] = gguf.quants.dequantize(rows, kind)
    return values.reshape(tensor.shape)
