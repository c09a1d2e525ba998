"""Building an executor: identity, memory, processors with few instructions."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from executor_steps import EXACT, TinyModel

from headrace.errors import ConfigError, ModelFileError, ModelTooLarge
from headrace.executor.openvino import build
from headrace.executor.openvino.cpu import available_bytes
from headrace.executor.openvino.options import KvPrecision, OpenVinoOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CAPPED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import numpy as np
import openvino as ov
from executor_steps import TinyModel, log_softmax, run, tokens_of
from headrace.executor.openvino.cpu import Precision, best_precision, examine_cpu
from headrace.executor.openvino.options import OpenVinoOptions

cpu = examine_cpu(ov.Core())
assert not cpu.bf16 and not cpu.amx, cpu
assert best_precision(cpu) is Precision.F32
model, tokens = TinyModel(Path(sys.argv[1]), Path(sys.argv[2])), tokens_of(40)
executor = model.executor(OpenVinoOptions(kv_tokens=128, max_model_len=256))
truth = log_softmax(model.reference.logits(tokens))[-1]
found = run(executor, tokens, [0, 1], [33, 6, 1])[-1]
divergence = float((np.exp(truth) * (truth - found)).sum())
assert divergence < 0.01, divergence
print("equal")
"""


def test_a_processor_with_avx2_only_runs_in_f32(tiny: Callable[..., TinyModel]):
    model = tiny()
    here = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, str(model.path), str(model.cache), here],
        env={"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr


def test_the_spec_says_what_was_built(tiny: Callable[..., TinyModel]):
    spec = tiny().executor().spec
    assert (spec.vocab_size, spec.max_model_len, spec.block_size) == (304, 256, 32)
    assert spec.num_blocks == 24
    assert spec.block_bytes == 2 * 2 * 2 * 16 * 32 * 4  # layers, k and v, heads, size, tokens, f32


def test_identity_names_weights_and_arithmetic(tiny: Callable[..., TinyModel]):
    def identity(model: TinyModel, options: OpenVinoOptions) -> str:
        return model.executor(options).spec.model_identity

    base = identity(tiny(), EXACT)
    assert identity(tiny(), replace(EXACT, kv_tokens=64, num_threads=2)) == base
    assert identity(tiny(seed=1), EXACT) != base
    assert identity(tiny(), replace(EXACT, kv_precision=KvPrecision.U8)) != base


def test_a_model_that_does_not_fit_is_refused_before_memory_is_taken(
    tiny: Callable[..., TinyModel], monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ModelTooLarge, match=r"KV cache of 100000000000 tokens.*smaller model"):
        tiny().executor(replace(EXACT, kv_tokens=10**11))
    monkeypatch.setattr(build, "available_bytes", lambda: 10**6)
    with pytest.raises(ModelTooLarge, match="0 MiB of memory are free"):
        tiny().executor()


def test_memory_that_can_be_had_is_some_but_not_absurd():
    assert 1 << 24 < available_bytes() < 1 << 50


def test_untouched_blocks_cost_no_memory(tiny: Callable[..., TinyModel]):
    before = resident_bytes()
    executor = tiny().executor(replace(EXACT, kv_tokens=1 << 20))
    assert executor.spec.num_blocks * executor.spec.block_bytes == 1 << 29
    assert resident_bytes() - before < 1 << 27


def resident_bytes() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096


def test_a_cache_below_one_block_is_refused(tiny: Callable[..., TinyModel]):
    with pytest.raises(ConfigError, match="31 tokens holds no block of 32"):
        tiny().executor(replace(EXACT, kv_tokens=31))


def test_a_missing_file_is_a_model_file_error(tmp_path: Path):
    with pytest.raises(ModelFileError, match="No such file"):
        build.build_openvino_executor(tmp_path / "no.gguf", tmp_path, EXACT)
