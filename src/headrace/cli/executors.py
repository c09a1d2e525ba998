"""Which executor a process runs its steps on: the wiring, imported only where one is needed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import ExecutorFault, MissingExtra, StartError
from headrace.executor.base import ExecutorSpec
from headrace.server.settings import AUTO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.executor.base import Executor
    from headrace.executor.constraints import Constraints
    from headrace.server.settings import EngineSettings, ModelFile

FORMS: Mapping[str, tuple[str, ...]] = {
    AUTO: (),
    "stored": ("stored",),
    "dense": ("dense",),
    "both": ("stored", "dense"),
    "int8": ("int8",),
}
"""What ``engine.weight_form`` means: the forms in which weights are kept."""

SIMULATED_BLOCK_TOKENS = 32
"""As the CPU executor has it."""


def executor_builder(
    model: ModelFile, settings: EngineSettings, *, cache_dir: Path, progress: Callable[[str], None]
) -> Callable[[], Executor]:
    """Return a function that builds the executor; it blocks, and belongs in the executor's thread.

    ``progress`` is called from that thread.
    """
    if model.simulated:
        return lambda: _simulated(model, settings)
    return lambda: _openvino(model, settings, cache_dir=cache_dir, progress=progress)


def _simulated(model: ModelFile, settings: EngineSettings) -> Executor:
    from headrace.executor.simulated import SLOT_BYTES, SimulatedExecutor
    from headrace.model.gguf import read_gguf
    from headrace.model.spec import spec_from_gguf
    from headrace.server.executor_thread import PacedExecutor

    model_spec = spec_from_gguf(read_gguf(Path(model.path)))
    spec = ExecutorSpec(
        model_identity=f"simulated/{model.name}",
        vocab_size=model_spec.vocab_size,
        max_model_len=_context(settings, model_spec.context_length),
        block_size=SIMULATED_BLOCK_TOKENS,
        num_blocks=max(1, settings.kv_cache_tokens // SIMULATED_BLOCK_TOKENS),
        block_bytes=SIMULATED_BLOCK_TOKENS * SLOT_BYTES,
    )
    never = threading.Event()  # a wait that cannot be shortened: one step at most
    executor = SimulatedExecutor(spec, constraints=_constraints(model, settings))
    return PacedExecutor(executor, speed=settings.simulated_speed, wait=never.wait)


def _constraints(model: ModelFile, settings: EngineSettings) -> Constraints:
    """Return what holds sequences to grammars. It takes its memory with the first of them."""
    from headrace.executor.constraints import Constraints
    from headrace.model.gguf import read_gguf
    from headrace.model.grammar import GrammarCompiler
    from headrace.model.tokenizer import build_tokenizer

    compiler = GrammarCompiler(lambda: build_tokenizer(read_gguf(Path(model.path)).metadata))
    if not settings.grammar_threads:
        return Constraints(compiler)
    pool = ThreadPoolExecutor(settings.grammar_threads, thread_name_prefix="grammar")
    return Constraints(compiler, pool)


def _context(settings: EngineSettings, longest: int) -> int:
    return min(settings.max_model_len or longest, longest)


def _openvino(
    model: ModelFile, settings: EngineSettings, *, cache_dir: Path, progress: Callable[[str], None]
) -> Executor:
    try:
        from headrace.executor.openvino.build import build_openvino_executor
        from headrace.executor.openvino.cpu import Precision
        from headrace.executor.openvino.options import KvPrecision, OpenVinoOptions
        from headrace.executor.openvino.weights import WeightForm
        from headrace.executor.sampler import Sampler
    except ImportError as error:
        raise MissingExtra(
            f"{error.name} is not installed: pip install 'headrace[engine]'"
        ) from None
    progress(f"loading {model.name}")
    options = OpenVinoOptions(
        kv_tokens=settings.kv_cache_tokens,
        max_model_len=settings.max_model_len or None,
        precision=None if settings.precision == AUTO else Precision(settings.precision),
        kv_precision=None if settings.kv_precision == AUTO else KvPrecision(settings.kv_precision),
        weight_forms=tuple(WeightForm(form) for form in FORMS[settings.weight_form]) or None,
        num_threads=settings.threads or None,
    )
    try:
        sampler = Sampler(_constraints(model, settings))
        return build_openvino_executor(Path(model.path), cache_dir, options, sampler=sampler)
    except ExecutorFault as fault:
        raise StartError(f"{model.path}: {fault}") from fault
