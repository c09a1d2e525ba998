"""Roofline: how long a step of a transformer takes on a GPU, from sizes and data sheets.

A step is host work, then layers, then logits. Linear layers take the longer of computing
(2 FLOPs for each weight and token) and reading every weight once; attention the longer of
4 FLOPs for each query-key pair and head element and reading keys and values; a group of ``tp``
GPUs shares all of it evenly and adds two all-reduces for each layer (ring: 2 (tp-1)/tp of the
activations over each link; Thakur et al. 2005). What a kernel reaches of a data sheet's figure is
in ``Efficiency``.

Source of the form: Williams, Waterman, Patterson, "Roofline" (CACM 2009). It knows no requests,
no blocks and no mixture of experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.types import Seconds, Tokens

LINEAR_FLOPS = 2.0
"""For each weight and token: a multiplication and an addition."""
ATTENTION_FLOPS = 4.0
"""For each query-key pair and element of a head: two for QK, two for PV."""
ALL_REDUCES = 2
"""In each layer: after attention and after the feed-forward part (Shoeybi et al. 2019)."""
ACTIVATION_BYTES = 2
"""Of one value between layers: 16 bits, whatever the weights are."""


class Precision(StrEnum):
    """Of weights and their arithmetic. Keys and values are 16-bit."""

    BF16 = "bf16"
    FP8 = "fp8"

    @property
    def weight_bytes(self) -> int:
        """Of one weight."""
        return 2 if self is Precision.BF16 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A dense decoder with grouped-query attention and a gated feed-forward part."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: Tokens
    tied: bool = False  # the embedding is also the output matrix

    @property
    def linear_weights(self) -> int:
        """Weights of all layers (norms and biases are left out)."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def logits_weights(self) -> int:
        """Weights of the output matrix."""
        return self.vocab * self.hidden

    @property
    def weights(self) -> int:
        """All weights that lie in memory."""
        return self.linear_weights + self.logits_weights * (1 if self.tied else 2)

    @property
    def kv_bytes(self) -> int:
        """Of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * ACTIVATION_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A data sheet: per GPU, dense, without sparsity. 0 for what it does not have."""

    name: str
    memory_bytes: float
    bandwidth: float  # bytes/s of its memory
    bf16_flops: float
    fp8_flops: float
    link_bandwidth: float  # bytes/s to its peers, one way

    def flops(self, precision: Precision) -> float:
        """FLOP/s at a precision; what has no FP8 unit computes in BF16."""
        if precision is Precision.FP8 and self.fp8_flops:
            return self.fp8_flops
        return self.bf16_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What is reached of the data sheet, and what comes on top. Fitted; see ``FITTED``."""

    compute: float  # share of FLOP/s in large multiplications
    bandwidth: float  # share of the memory's bytes/s when weights are read
    attention_compute: float  # share of FLOP/s in attention
    attention_bandwidth: float  # share of the memory's bytes/s when keys and values are read
    link: float  # share of the links' bytes/s in an all-reduce
    step_seconds: Seconds  # scheduling, inputs, sampling: once a step
    sequence_seconds: Seconds  # the same, for each sequence in it
    layer_seconds: Seconds  # kernels that start one after the other, and small ones
    all_reduce_seconds: Seconds  # latency of one all-reduce


FITTED = Efficiency(
    compute=0.66,
    bandwidth=0.87,
    attention_compute=0.75,
    attention_bandwidth=0.90,
    link=0.73,
    step_seconds=1.54e-3,
    sequence_seconds=51e-6,
    layer_seconds=9.2e-6,
    all_reduce_seconds=17e-6,
)
"""Fit to vLLM (0.12 and its neighbours) on H100, H200 and B200 by
benchmarks/twin/validate_costs.py, which also tells how far off it is. Attention is held to what
kernels are known to reach: three quarters of the FLOPs (Shah et al., "FlashAttention-3", 2024),
nine tenths of the bandwidth."""


class StepWork(NamedTuple):
    """What a step computes."""

    tokens: Tokens  # through the linear layers
    sequences: int
    prefill_pairs: int  # query-key pairs of rows with several tokens
    prefill_context: Tokens  # keys and values that those rows read
    decode_context: Tokens  # the same for rows of one token
    samples: int  # rows that want logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One replica: a model on ``tp`` GPUs."""

    model: ModelShape
    gpu: Gpu
    tp: int = 1
    precision: Precision = Precision.BF16
    efficiency: Efficiency = FITTED

    def step_time(self) -> StepTime:
        """Work out the coefficients once."""
        return StepTime(self)


class StepTime:
    """Seconds of a step; coefficients are seconds per unit of StepWork."""

    def __init__(self, deployment: Deployment) -> None:
        model, gpu, fit, tp = (
            deployment.model,
            deployment.gpu,
            deployment.efficiency,
            deployment.tp,
        )
        flops = gpu.flops(deployment.precision) * fit.compute * tp
        weight_rate = gpu.bandwidth * fit.bandwidth * tp / deployment.precision.weight_bytes
        attention_bytes = gpu.bandwidth * fit.attention_bandwidth * tp
        attention_flops = gpu.bf16_flops * fit.attention_compute * tp
        pair_flops = ATTENTION_FLOPS * model.heads * model.head_dim * model.layers
        self._read_linear = model.linear_weights / weight_rate
        self._token = LINEAR_FLOPS * model.linear_weights / flops
        self._read_logits = model.logits_weights / weight_rate
        self._sample = LINEAR_FLOPS * model.logits_weights / flops
        self._pair = pair_flops / attention_flops
        self._context = model.kv_bytes / attention_bytes
        self._fixed = fit.step_seconds + model.layers * fit.layer_seconds
        self._sequence = fit.sequence_seconds
        self._reduce = 0.0
        if tp > 1:
            reduces = ALL_REDUCES * model.layers
            self._fixed += reduces * fit.all_reduce_seconds
            sent = model.hidden * ACTIVATION_BYTES * 2 * (tp - 1) / tp
            self._reduce = reduces * sent / (gpu.link_bandwidth * fit.link)

    def of(self, work: StepWork) -> Seconds:
        """Return the seconds that a step takes."""
        tokens, sequences, pairs, prefill_context, decode_context, samples = work
        return (
            self._fixed
            + sequences * self._sequence
            + max(tokens * self._token, self._read_linear)
            + tokens * self._reduce
            + max(pairs * self._pair, prefill_context * self._context)
            + decode_context * self._context
            + (max(samples * self._sample, self._read_logits) if samples else 0.0)
        )
