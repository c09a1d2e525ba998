"""How many KV blocks a replica has: what memory is left when the model is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import ModelTooLarge
from headrace.executor.base import ExecutorSpec

if TYPE_CHECKING:
    from headrace.core.costs.roofline import Deployment
    from headrace.types import Tokens

USED_SHARE = 0.9
"""Of a GPU's memory, as vLLM's gpu_memory_utilization by default."""
OTHER_BYTES = 2e9
"""On each GPU: CUDA context, graphs, communication buffers. Peers' planners take 1-3.5 GiB."""
ACTIVATION_VALUES = 6
"""Rows of the hidden size (or of the feed-forward part) alive at a time, for each token."""
TP_SIZES = (1, 2, 4, 8, 16)


def executor_spec(
    deployment: Deployment, *, block_size: Tokens, max_step_tokens: Tokens
) -> ExecutorSpec:
    """Return what a replica offers.

    Raises ModelTooLarge, with a ``tp`` that would do, if a single full step has no room.
    """
    model = deployment.model
    block_bytes = model.kv_bytes * block_size
    room = _room(deployment, deployment.tp, max_step_tokens)
    if room < model.kv_bytes * max_step_tokens:
        raise ModelTooLarge(_advice(deployment, max_step_tokens))
    return ExecutorSpec(
        model_identity=f"{model.name}/{deployment.precision}",
        vocab_size=model.vocab,
        max_model_len=model.context,
        block_size=block_size,
        num_blocks=int(room // block_bytes),
        block_bytes=block_bytes,
    )


def _room(deployment: Deployment, tp: int, max_step_tokens: Tokens) -> float:
    """Bytes for keys and values on ``tp`` GPUs together; below 0 if the weights do not fit."""
    model, gpu = deployment.model, deployment.gpu
    weights = model.weights * deployment.precision.weight_bytes
    widest = max(model.hidden, model.ffn / tp)
    activations = 2 * ACTIVATION_VALUES * widest * max_step_tokens
    return tp * (gpu.memory_bytes * USED_SHARE - OTHER_BYTES - activations) - weights


def _advice(deployment: Deployment, max_step_tokens: Tokens) -> str:
    model, gpu = deployment.model, deployment.gpu
    needed = model.kv_bytes * max_step_tokens
    gigabytes = model.weights * deployment.precision.weight_bytes / 1e9
    fitting = [tp for tp in TP_SIZES if _room(deployment, tp, max_step_tokens) >= needed]
    advice = f"--tp {fitting[0]} would fit" if fitting else "no group of these GPUs would fit"
    return (
        f"{model.name} ({gigabytes:.0f} GB of {deployment.precision} weights) does not fit "
        f"{deployment.tp} x {gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB each): {advice}"
    )
