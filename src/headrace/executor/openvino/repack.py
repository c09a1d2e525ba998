"""The weights of a whole model, as its graph takes them, from a GGUF file."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.executor.openvino.weights import (
    Matrix,
    WeightForm,
    halves_from_pairs,
    matrix_of,
    stacked,
)
from headrace.model.spec import tensor_shapes
from headrace.model.tensors import dequantize

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from headrace.model.gguf import GgufFile
    from headrace.model.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """Matrices by name (``blk.0.attn_q``), vectors by full name (``blk.0.attn_norm.weight``).

    ``digest`` names their content. ``mapping`` is the file that they lie in, if they do.
    """

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, npt.NDArray[np.float32]]
    digest: str
    mapping: mmap.mmap | None = None

    def release_pages(self) -> None:
        """Give mapped memory back; what is read again comes from the file."""
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices that are multiplied by the same inputs, and the name of them all as one."""

    name: str
    parts: tuple[str, ...]

    def sizes(self, spec: ModelSpec) -> tuple[int, ...]:
        """Return the outputs of each part."""
        shapes = tensor_shapes(spec)
        return tuple(shapes[f"blk.0.{part}.weight"][0] for part in self.parts)


QKV = Stack("attn_qkv", ("attn_q", "attn_k", "attn_v"))
GATE_UP = Stack("ffn_gate_up", ("ffn_gate", "ffn_up"))


def repacked(
    file: GgufFile, spec: ModelSpec, form: WeightForm, stacks: Sequence[Stack]
) -> Iterator[tuple[str, Matrix | npt.NDArray[np.float32]]]:
    """Yield every matrix and vector of a model; matrices of ``stacks`` as one where they can be."""
    stack_of = {part: stack for stack in stacks for part in stack.parts}
    waiting: dict[str, Matrix] = {}
    for name, entry in _separate(file, spec, form):
        block, _, part = name.rpartition(".")
        stack = stack_of.get(part)
        if stack is None or not isinstance(entry, Matrix):
            yield name, entry
            continue
        waiting[part] = entry
        if len(waiting) == len(stack.parts):
            together = stacked([waiting[part] for part in stack.parts])
            if together is not None:
                yield f"{block}.{stack.name}", together
            else:
                yield from ((f"{block}.{part}", matrix) for part, matrix in waiting.items())
            waiting = {}


def _separate(
    file: GgufFile, spec: ModelSpec, form: WeightForm
) -> Iterator[tuple[str, Matrix | npt.NDArray[np.float32]]]:
    """Yield every matrix and vector by itself.

    Rows of query and key matrices (and their biases) are put in the order that rotation of
    halves needs, whatever the file has.
    """
    orders = {}
    if spec.permuted_rope:
        orders = {
            "attn_q": halves_from_pairs(spec.num_heads, spec.head_dim),
            "attn_k": halves_from_pairs(spec.num_kv_heads, spec.head_dim),
        }
    for name, shape in tensor_shapes(spec).items():
        tensor = file.tensors[name]
        stem, _, suffix = name.rpartition(".")
        rows = orders.get(stem.rpartition(".")[2])
        if len(shape) == 2:
            yield stem, matrix_of(tensor, form, rows)
        else:
            values = dequantize(tensor)
            yield name, values if rows is None or suffix != "bias" else values[rows]
