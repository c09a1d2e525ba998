"""A decoder as an OpenVINO graph whose attention reads and writes paged key/value caches.

Everything is two-dimensional, [tokens of the whole step, width]: a step's rows lie one after the
other, and only PagedAttention knows where each begins. Patterns that the CPU plugin fuses (RMS
norm, rotation of halves, gated SiLU, unpacking of weights inside the multiplication) are written
as it expects them. Facts of OpenVINO 2026.4; the operation is private there and its inputs have
changed between releases, so it is constructed in one function and the version is pinned.

Shape suffixes: T tokens of the step, C hidden size, H query heads, K key/value heads, D head
size, P positions, S positions that are sampled, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import openvino as ov
import openvino.opset15 as op
from openvino.op import _PagedAttentionExtension as PagedAttention

from headrace.executor.openvino.repack import GATE_UP, QKV
from headrace.executor.openvino.weights import Matrix, Storage, whole_zeros

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from headrace.executor.openvino.repack import ModelWeights, Stack
    from headrace.model.spec import ModelSpec
    from headrace.types import Tokens

Value: TypeAlias = Any  # an ov.Node or ov.Output; the package has no usable types

TOKENS = "tokens"  # i32 [T]
POSITIONS = "positions"  # i32 [T]
SAMPLED = "sampled"  # i32 [S]: which tokens' logits are wanted
PAST_LENS = "past_lens"  # i32 [rows]: tokens in the caches before the step
ROW_BEGINS = "row_begins"  # i32 [rows + 1]: where rows begin in T
BLOCKS = "blocks"  # i32 [n]: block tables of all rows
BLOCK_BEGINS = "block_begins"  # i32 [rows + 1]: where rows begin in them
LONGEST = "longest"  # i32 []: the longest context after the step
VECTOR_INPUTS = (TOKENS, POSITIONS, SAMPLED, PAST_LENS, ROW_BEGINS, BLOCKS, BLOCK_BEGINS)


def cache_name(layer: int, part: str) -> str:
    """Return the input that a layer's ``key`` or ``value`` cache is given to."""
    return f"{part}_cache.{layer}"


def build_graph(spec: ModelSpec, weights: ModelWeights, max_model_len: Tokens) -> ov.Model:
    """Return the graph: inputs as named above and a pair of caches a layer, output [S, V].

    Its constants share the memory of ``weights``, which must outlive whatever is compiled of it.
    """
    return _Builder(spec, weights, max_model_len).build()


class _Builder:
    def __init__(self, spec: ModelSpec, weights: ModelWeights, max_model_len: Tokens) -> None:
        self._spec = spec
        self._weights = weights
        self._max_model_len = max_model_len
        self._inputs = {name: _parameter(name, [-1], ov.Type.i32) for name in VECTOR_INPUTS}
        self._inputs[LONGEST] = _parameter(LONGEST, [], ov.Type.i32)
        self._caches: list[Value] = []
        self._rotation: tuple[Value, Value] | None = None

    def build(self) -> ov.Model:
        """Return the whole decoder."""
        spec, first_axis = self._spec, _constant(0, np.int64)
        embeddings = _unpacked(self._weights.matrices["token_embd"])
        x_TC = op.gather(embeddings, self._inputs[TOKENS], first_axis)
        rotation = self._rotation_of_positions()
        for layer in range(spec.num_layers):
            x_TC = op.add(x_TC, self._attention(layer, x_TC, rotation))
            x_TC = op.add(x_TC, self._feed_forward(layer, x_TC))
        x_SC = op.gather(x_TC, self._inputs[SAMPLED], first_axis)
        head = "token_embd" if spec.tied_embeddings else "output"
        logits_SV = _linear(self._norm("output_norm", x_SC), self._weights.matrices[head])
        model = ov.Model(
            [op.result(logits_SV)], [*self._inputs.values(), *self._caches], "headrace_decoder"
        )
        model.validate_nodes_and_infer_types()
        return model

    def _rotation_of_positions(self) -> tuple[Value, Value]:
        """Return cosines and sines, [T, 1, 1, D]. Tables, so that no angle is rounded to bf16."""
        spec, half = self._spec, self._spec.head_dim // 2
        frequencies = spec.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
        frequencies /= np.array(spec.rope_factors or [1.0])
        angles_PD = np.tile(np.arange(self._max_model_len)[:, None] * frequencies, 2)
        shape = _constant([-1, 1, 1, spec.head_dim], np.int64)
        cos, sin = (
            op.reshape(
                op.gather(
                    op.constant(table_PD.astype(np.float32)),
                    self._inputs[POSITIONS],
                    _constant(0, np.int64),
                ),
                shape,
                False,
            )
            for table_PD in (np.cos(angles_PD), np.sin(angles_PD))
        )
        return cos, sin

    def _attention(self, layer: int, x_TC: Value, rotation: tuple[Value, Value]) -> Value:
        spec, block = self._spec, f"blk.{layer}."
        h_TC = self._norm(block + "attn_norm", x_TC)
        q, k, v = self._linears(block, QKV, h_TC)
        q_THD = self._heads(q, spec.num_heads, block + "attn_q_norm")
        k_TKD = self._heads(k, spec.num_kv_heads, block + "attn_k_norm")
        caches = [
            _parameter(cache_name(layer, part), ov.PartialShape.dynamic(4), ov.Type.dynamic)
            for part in ("key", "value")
        ]
        self._caches += caches
        mixed = _paged_attention(
            spec,
            queries_keys_values=[
                _flat(_rotate(q_THD, rotation, spec.head_dim), spec.q_size),
                _flat(_rotate(k_TKD, rotation, spec.head_dim), spec.kv_size),
                v,
            ],
            caches=caches,
            inputs=self._inputs,
        )
        return _linear(mixed, self._weights.matrices[block + "attn_output"])

    def _feed_forward(self, layer: int, x_TC: Value) -> Value:
        block = f"blk.{layer}."
        h_TC = self._norm(block + "ffn_norm", x_TC)
        gate, up = self._linears(block, GATE_UP, h_TC)
        gated = op.multiply(op.swish(gate), up)
        return _linear(gated, self._weights.matrices[block + "ffn_down"])

    def _linears(self, block: str, stack: Stack, x: Value) -> list[Value]:
        """Multiply ``x`` by several matrices, by one call where they are stacked."""
        names = [block + part for part in stack.parts]
        biases = [self._weights.vectors.get(name + ".bias") for name in names]
        together = self._weights.matrices.get(block + stack.name)
        if together is None:
            pairs = zip(names, biases, strict=True)
            return [_linear(x, self._weights.matrices[name], bias) for name, bias in pairs]
        present = [bias for bias in biases if bias is not None]
        y = _linear(x, together, np.concatenate(present) if present else None)
        sizes = _constant(stack.sizes(self._spec), np.int64)
        outputs: list[Value] = op.variadic_split(y, _constant(1, np.int64), sizes).outputs()
        return outputs

    def _heads(self, x: Value, num_heads: int, norm: str) -> Value:
        """Return [T, heads, 1, D], normalised per head where the model does so."""
        shape = _constant([-1, num_heads, 1, self._spec.head_dim], np.int64)
        heads = op.reshape(x, shape, False)
        return self._norm(norm, heads) if self._spec.qk_norm else heads

    def _norm(self, name: str, x: Value) -> Value:
        square = op.power(x, _constant(2.0, np.float32))
        mean = op.reduce_mean(square, _constant([-1], np.int64), True)
        root = op.sqrt(op.add(mean, _constant(self._spec.norm_eps, np.float32)))
        normed = op.multiply(x, op.divide(_constant(1.0, np.float32), root))
        return op.multiply(normed, op.constant(self._weights.vectors[name + ".weight"]))


def _parameter(name: str, shape: Sequence[int] | ov.PartialShape, kind: ov.Type) -> Value:
    parameter = op.parameter(shape, kind)
    parameter.set_friendly_name(name)
    parameter.output(0).set_names({name})
    return parameter


def _constant(value: float | Sequence[int], dtype: type[np.generic]) -> Value:
    return op.constant(np.asarray(value, dtype))


def _flat(x: Value, width: int) -> Value:
    return op.reshape(x, _constant([-1, width], np.int64), False)


def _linear(x: Value, matrix: Matrix, bias: npt.NDArray[np.float32] | None = None) -> Value:
    y = op.matmul(x, _unpacked(matrix), False, True)
    return y if bias is None else op.add(y, op.constant(bias))


_TYPES = {
    Storage.U4: ov.Type.u4,
    Storage.I4: ov.Type.i4,
    Storage.U8: ov.Type.u8,
    Storage.I8: ov.Type.i8,
    Storage.F16: ov.Type.f16,
    Storage.BF16: ov.Type.bf16,
    Storage.F32: ov.Type.f32,
}


def _unpacked(matrix: Matrix) -> Value:
    """Return f32 [O, I] by the chain that the plugin takes into the multiplication."""
    outputs, inputs = matrix.shape
    if matrix.scales is None:
        dense = _shared(matrix.values, [outputs, inputs], _TYPES[matrix.storage])
        return dense if matrix.storage is Storage.F32 else op.convert(dense, "f32")
    groups = matrix.scales.shape[1]
    values = _shared(matrix.values, [outputs, groups, inputs // groups], _TYPES[matrix.storage])
    x = op.convert(values, "f32")
    if matrix.zeros is not None:
        x = op.subtract(x, _zeros(matrix, matrix.zeros, [outputs, groups, 1]))
    x = op.multiply(x, _shared(matrix.scales, [outputs, groups, 1], ov.Type.f32))
    return op.reshape(x, _constant([outputs, inputs], np.int64), False)


def _zeros(matrix: Matrix, zeros: npt.NDArray[np.float32], shape: Sequence[int]) -> Value:
    """Return zero points as f32; from bytes, where they are such: those int8 kernels know."""
    whole = whole_zeros(matrix)
    if whole is not None:
        return op.convert(op.constant(whole.reshape(shape)), "f32")
    return _shared(zeros, shape, ov.Type.f32)


def _shared(array: npt.NDArray[Any], shape: Sequence[int], kind: ov.Type) -> Value:
    tensor = ov.Tensor(array.reshape(-1), ov.Shape(shape), kind)
    return op.constant(tensor, shared_memory=True)


def _rotate(x: Value, rotation: tuple[Value, Value], head_dim: int) -> Value:
    """Rotate halves of [T, heads, 1, D]."""
    cos, sin = rotation
    axis, step = _constant([3], np.int64), _constant([1], np.int64)
    middle, end = _constant([head_dim // 2], np.int64), _constant([2**31 - 1], np.int64)
    first = op.slice(x, _constant([0], np.int64), middle, step, axis)
    second = op.slice(x, middle, end, step, axis)
    turned = op.concat([op.multiply(second, _constant(-1.0, np.float32)), first], -1)
    return op.add(op.multiply(x, cos), op.multiply(turned, sin))


def _paged_attention(
    spec: ModelSpec,
    *,
    queries_keys_values: Sequence[Value],
    caches: Sequence[Value],
    inputs: Mapping[str, Value],
) -> Value:
    """Return the mixed values [T, H * D]; keys and values of the step are written to the caches.

    The 28 inputs of OpenVINO 2026.4; those of features that are not used are empty. Input 13 must
    be an empty vector: a scalar is accepted and then fails for two rows.
    """
    no_ints, no_floats = _constant([], np.int32), _constant([], np.float32)
    off = _constant(0, np.int32)
    arguments = [
        *queries_keys_values,
        *caches,
        inputs[PAST_LENS],
        inputs[ROW_BEGINS],
        inputs[BLOCKS],
        inputs[BLOCK_BEGINS],
        _constant(1 / math.sqrt(spec.head_dim), np.float32),
        off,  # sliding window
        no_floats,  # alibi slopes
        inputs[LONGEST],
        no_ints,  # score aggregation window
        *(no_ints, no_ints, no_floats),  # rotation of cached keys: blocks, deltas, table
        *(no_floats, off, off),  # sparse attention: thresholds, block size, stride
        op.constant(np.zeros((0, 0, 0, 0), np.float32)),  # sinks
        *(off, no_ints, no_ints, no_ints),  # adaptive eviction
        no_ints,  # token types
        *(_constant([], np.uint8), no_ints),  # query-query bias and its begins
    ]
    outputs = [x if isinstance(x, ov.Output) else x.output(0) for x in arguments]
    node = PagedAttention(outputs)
    attributes = node.get_rt_info()  # the plugin shapes the caches by these
    for key, size in (
        ("num_k_heads", spec.num_kv_heads),
        ("k_head_size", spec.head_dim),
        ("num_v_heads", spec.num_kv_heads),
        ("v_head_size", spec.head_dim),
    ):
        attributes[key] = size
    return node.output(0)
