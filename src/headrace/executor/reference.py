"""The truth: a decoder's forward pass in plain numpy, float32, over dequantised weights.

Slow, without a cache, and written from the definition of the model rather than from the graph it
checks: it rotates neighbouring pairs where the file stores them so, instead of reordering rows.

Shape suffixes: T tokens, C hidden size, H query heads, K key/value heads, D head size,
V vocabulary, S the tokens attended to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.model.gguf import read_gguf
from headrace.model.spec import ModelSpec, spec_from_gguf
from headrace.model.tensors import dequantize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from headrace.types import TokenId

F32: TypeAlias = npt.NDArray[np.float32]


def load_reference(path: Path) -> Reference:
    """Read a whole GGUF model, dequantised: four bytes a weight. Raises ModelFileError."""
    file = read_gguf(path)
    weights = {name: dequantize(tensor) for name, tensor in file.tensors.items()}
    return Reference(spec_from_gguf(file), weights)


class Reference:
    """A model that is only ever asked for all logits of a whole sequence."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, F32]) -> None:
        self._spec = spec
        self._weights = weights

    def logits(self, tokens: Sequence[TokenId]) -> F32:
        """Return the logits after each token, [T, V]."""
        weights = self._weights
        x_TC = weights["token_embd.weight"][list(tokens)]
        for layer in range(self._spec.num_layers):
            x_TC = x_TC + self._attention(layer, x_TC)
            x_TC = x_TC + self._feed_forward(layer, x_TC)
        head = "token_embd.weight" if self._spec.tied_embeddings else "output.weight"
        logits_TV: F32 = self._norm("output_norm.weight", x_TC) @ weights[head].T
        return logits_TV

    def _attention(self, layer: int, x_TC: F32) -> F32:
        spec, block = self._spec, f"blk.{layer}."
        h_TC = self._norm(block + "attn_norm.weight", x_TC)
        q_THD = self._project(block + "attn_q", h_TC).reshape(-1, spec.num_heads, spec.head_dim)
        k_TKD, v_TKD = (
            self._project(block + name, h_TC).reshape(-1, spec.num_kv_heads, spec.head_dim)
            for name in ("attn_k", "attn_v")
        )
        if spec.qk_norm:
            q_THD = self._norm(block + "attn_q_norm.weight", q_THD)
            k_TKD = self._norm(block + "attn_k_norm.weight", k_TKD)
        shared = spec.num_heads // spec.num_kv_heads
        k_SHD, v_SHD = (x.repeat(shared, axis=1) for x in (self._rotate(k_TKD), v_TKD))
        scores_HTS = np.einsum("thd,shd->hts", self._rotate(q_THD), k_SHD)
        scores_HTS = scores_HTS / np.float32(np.sqrt(spec.head_dim))
        num_tokens = len(x_TC)
        scores_HTS[:, np.triu(np.ones((num_tokens, num_tokens), bool), 1)] = -np.inf
        weights_HTS = np.exp(scores_HTS - scores_HTS.max(-1, keepdims=True))
        weights_HTS /= weights_HTS.sum(-1, keepdims=True)
        mixed_THD = np.einsum("hts,shd->thd", weights_HTS, v_SHD)
        return self._project(block + "attn_output", mixed_THD.reshape(num_tokens, -1))

    def _feed_forward(self, layer: int, x_TC: F32) -> F32:
        block = f"blk.{layer}."
        h_TC = self._norm(block + "ffn_norm.weight", x_TC)
        gate = self._project(block + "ffn_gate", h_TC)
        gated: F32 = gate / (1 + np.exp(-gate)) * self._project(block + "ffn_up", h_TC)
        return self._project(block + "ffn_down", gated)

    def _project(self, name: str, x: F32) -> F32:
        y: F32 = x @ self._weights[name + ".weight"].T
        bias = self._weights.get(name + ".bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: F32) -> F32:
        mean_square = np.square(x).mean(-1, keepdims=True)
        normed: F32 = x / np.sqrt(mean_square + np.float32(self._spec.norm_eps))
        return normed * self._weights[name]

    def _rotate(self, x_THD: F32) -> F32:
        """Rotate by position (Su et al. 2021), pairs lying as the file has them."""
        half = self._spec.head_dim // 2
        frequencies = self._spec.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
        frequencies /= np.array(self._spec.rope_factors or [1.0])
        angles = np.arange(len(x_THD))[:, None, None] * frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        neighbours = self._spec.permuted_rope
        first, second = (
            (slice(0, None, 2), slice(1, None, 2))
            if neighbours
            else (slice(half), slice(half, None))
        )
        x_first, x_second = x_THD[..., first], x_THD[..., second]
        rotated = np.empty_like(x_THD)
        rotated[..., first] = x_first * cos - x_second * sin
        rotated[..., second] = x_first * sin + x_second * cos
        return rotated
