"""Puts an OpenVinoExecutor together: file, weights, graph, memory."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import openvino as ov

from headrace.clock import MonotonicClock
from headrace.errors import ConfigError, ExecutorFault, ModelTooLarge
from headrace.executor.base import ExecutorSpec
from headrace.executor.openvino.cpu import available_bytes, examine_cpu
from headrace.executor.openvino.executor import OpenVinoExecutor
from headrace.executor.openvino.graph import LONGEST, VECTOR_INPUTS, build_graph, cache_name
from headrace.executor.openvino.graphs import Graph, Graphs
from headrace.executor.openvino.kv_blocks import KvBlocks, allocate
from headrace.executor.openvino.options import Choice, KvPrecision, OpenVinoOptions, choose
from headrace.executor.openvino.weight_cache import load_weights
from headrace.executor.sampler import Sampler
from headrace.model.gguf import read_gguf
from headrace.model.spec import spec_from_gguf
from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from headrace.clock import Clock
    from headrace.executor.openvino.repack import ModelWeights
    from headrace.model.spec import ModelSpec

BLOCK_SIZE = 32  # tokens; fixed by the CPU plugin's PagedAttention
_RUNTIME_BYTES = 250 << 20  # Python, OpenVINO and the activations of a step of 512 tokens
_KV_BYTES = {KvPrecision.F32: 4.0, KvPrecision.F16: 2.0, KvPrecision.U8: 1.25}  # scales included


def build_openvino_executor(
    path: Path,
    cache_dir: Path,
    options: OpenVinoOptions,
    *,
    clock: Clock | None = None,
    sampler: Sampler | None = None,
) -> OpenVinoExecutor:
    """Load a GGUF model; repacked weights are kept in ``cache_dir``.

    Raises ModelFileError, ModelTooLarge, ConfigError, MissingExtra, ExecutorFault.
    """
    file = read_gguf(path)
    spec = spec_from_gguf(file)
    core = ov.Core()
    choice = choose(options, examine_cpu(core), spec.context_length)
    num_blocks = choice.kv_tokens // BLOCK_SIZE
    if num_blocks < 1:
        raise ConfigError(
            f"a KV cache of {choice.kv_tokens} tokens holds no block of {BLOCK_SIZE}: ask for more"
        )
    all_weights = [
        load_weights(file, spec, form, choice.stacks, cache_dir) for form in choice.weight_forms
    ]
    check_memory(spec, all_weights, choice, available_bytes())
    compiled = [_compile(core, spec, weights, choice) for weights in all_weights]
    caches = _allocate_caches(compiled[0], spec.num_layers, num_blocks + 1)  # with a scratch block
    kv_blocks = KvBlocks([cache.memory for cache in caches])
    graphs = [
        Graph(
            request=(request := _attach_caches(each.create_infer_request(), caches)),
            tensors=_attach_inputs(request),
            weights=weights,
            pads_steps=choice.pads_steps,
            scratch=BlockId(num_blocks),
            block_size=BLOCK_SIZE,
        )
        for each, weights in zip(compiled, all_weights, strict=True)
    ]
    digests = "+".join(weights.digest for weights in all_weights)
    identity = hashlib.sha256(f"{digests}|{spec}|{choice.arithmetic}".encode())
    executor = OpenVinoExecutor(
        spec=ExecutorSpec(
            model_identity=identity.hexdigest(),
            vocab_size=spec.vocab_size,
            max_model_len=choice.max_model_len,
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks,
            block_bytes=kv_blocks.block_bytes,
        ),
        graphs=Graphs(graphs),
        kv_blocks=kv_blocks,
        sampler=sampler or Sampler(),
        clock=clock or MonotonicClock(),
    )
    executor.warm_up()
    for weights in all_weights:
        weights.release_pages()
    return executor


def check_memory(
    spec: ModelSpec, all_weights: Sequence[ModelWeights], choice: Choice, available: int
) -> None:
    """Compare what a model needs with ``available`` bytes. Raises ModelTooLarge.

    Weights are counted twice: while a graph is compiled the plugin holds its own copy beside ours.
    """
    weight_bytes = 2 * sum(
        matrix.num_bytes for weights in all_weights for matrix in weights.matrices.values()
    )
    token_bytes = 2 * spec.num_layers * spec.kv_size * _KV_BYTES[choice.kv_precision]
    kv_bytes = int(choice.kv_tokens * token_bytes)
    needed = weight_bytes + kv_bytes + _RUNTIME_BYTES
    if needed > available:
        raise ModelTooLarge(
            f"the model needs about {needed >> 20} MiB ({weight_bytes >> 20} for weights while "
            f"loading, {kv_bytes >> 20} for a KV cache of {choice.kv_tokens} tokens) and "
            f"{available >> 20} MiB of memory are free: use a smaller model or a smaller KV cache"
        )


def _compile(
    core: ov.Core, spec: ModelSpec, weights: ModelWeights, choice: Choice
) -> ov.CompiledModel:
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": choice.num_threads,
        "ENABLE_CPU_PINNING": False,  # other processes share the cores
        "INFERENCE_PRECISION_HINT": choice.precision.value,
        "KV_CACHE_PRECISION": choice.kv_precision.value,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": choice.dynamic_quantization,
        "PERF_COUNT": choice.profile,
        "CPU_RUNTIME_CACHE_CAPACITY": choice.cached_kernels,
    }
    model = build_graph(spec, weights, choice.max_model_len)
    try:
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ExecutorFault(f"OpenVINO cannot compile the model: {error}") from error


def _attach_inputs(request: ov.InferRequest) -> dict[str, ov.Tensor]:
    """Give the request a tensor for each input that changes from step to step."""
    shapes = {**{key: [1] for key in VECTOR_INPUTS}, LONGEST: []}
    tensors = {name: ov.Tensor(ov.Type.i32, ov.Shape(shape)) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        request.set_tensor(name, tensor)
    return tensors


class _Cache(NamedTuple):
    name: str
    tensor: ov.Tensor
    memory: npt.NDArray[np.uint8]


def _allocate_caches(compiled: ov.CompiledModel, num_layers: int, num_blocks: int) -> list[_Cache]:
    """Allocate the caches of all layers."""
    names = [cache_name(layer, part) for layer in range(num_layers) for part in ("key", "value")]
    return [_Cache(name, *allocate(compiled.input(name), num_blocks)) for name in names]


def _attach_caches(request: ov.InferRequest, caches: Sequence[_Cache]) -> ov.InferRequest:
    """Give caches to a request; return it."""
    for cache in caches:
        request.set_tensor(cache.name, cache.tensor)
    return request
