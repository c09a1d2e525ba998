"""What may be chosen about running a model, and what is chosen when nobody says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from headrace.errors import ConfigError
from headrace.executor.openvino.cpu import Precision, best_precision
from headrace.executor.openvino.repack import QKV, Stack
from headrace.executor.openvino.weights import WeightForm

if TYPE_CHECKING:
    from headrace.executor.openvino.cpu import Cpu
    from headrace.types import Tokens


INT8_GROUP = 32
"""As in llama.cpp. 16 would lose less (a KL of 0.0025 for 0.0042 on the check set), but with it
prompts are no quicker than with the file's own weights."""


class KvPrecision(StrEnum):
    """How keys and values are kept."""

    F32 = "f32"
    F16 = "f16"  # bf16 when the arithmetic is bf16
    U8 = "u8"  # with scales; some 0.6 of the memory of f16


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVinoOptions:
    """How a model is to be run. None leaves the choice to the processor and the model."""

    kv_tokens: Tokens = 32_768  # rounded down to whole blocks
    max_model_len: Tokens | None = None
    precision: Precision | None = None
    kv_precision: KvPrecision | None = None
    weight_forms: tuple[WeightForm, ...] | None = None  # two: see graphs.py
    num_threads: int | None = None
    dynamic_quantization: int | None = None  # inputs rounded to 8 bits together; 0 is off
    stacks: tuple[Stack, ...] = (QKV,)  # matrices multiplied in one go
    pads_steps: bool | None = None  # compute more tokens where that takes less time
    profile: bool = False  # let OpenVINO time each operation
    cached_kernels: int = 128  # kernels of past shapes kept, of each kind; OpenVINO's own is 5,000


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """``OpenVinoOptions`` with nothing left open."""

    kv_tokens: Tokens
    max_model_len: Tokens
    precision: Precision
    kv_precision: KvPrecision
    weight_forms: tuple[WeightForm, ...]
    num_threads: int
    dynamic_quantization: int
    stacks: tuple[Stack, ...]
    pads_steps: bool
    profile: bool
    cached_kernels: int

    @property
    def arithmetic(self) -> str:
        """Name what decides the bits of a result, besides the weights."""
        forms = "+".join(self.weight_forms)
        return f"{self.precision},{self.kv_precision},{forms},{self.dynamic_quantization}"


def choose(options: OpenVinoOptions, cpu: Cpu, context_length: Tokens) -> Choice:
    """Decide what the options leave open. Raises ConfigError."""
    max_model_len = options.max_model_len or context_length
    if max_model_len > context_length:
        raise ConfigError(
            f"the model has a context of {context_length} tokens, "
            f"a maximum length of {max_model_len} is more; ask for {context_length} or less"
        )
    if options.precision is Precision.BF16 and not cpu.bf16:
        raise ConfigError("this processor has no bf16 arithmetic; use f32 (or auto)")
    precision = options.precision or best_precision(cpu)
    weight_forms = options.weight_forms or (WeightForm.STORED,)
    unpacks = weight_forms == (WeightForm.STORED,)
    amx_unpacks = cpu.amx and precision is Precision.BF16 and unpacks
    return Choice(
        kv_tokens=options.kv_tokens,
        max_model_len=max_model_len,
        precision=precision,
        kv_precision=options.kv_precision or KvPrecision.F16,
        weight_forms=weight_forms,
        num_threads=options.num_threads or cpu.num_cores,
        dynamic_quantization=_quantization(options, weight_forms),
        stacks=options.stacks,
        pads_steps=amx_unpacks if options.pads_steps is None else options.pads_steps,
        profile=options.profile,
        cached_kernels=options.cached_kernels,
    )


def _quantization(options: OpenVinoOptions, forms: tuple[WeightForm, ...]) -> int:
    """Return how many inputs are rounded together: of int8 weights those that share a scale."""
    if options.dynamic_quantization is None:
        return INT8_GROUP if WeightForm.INT8 in forms else 0
    return options.dynamic_quantization
