"""Settings of an engine reach the executor that is built: each is seen in what it offers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.cli.executors import executor_builder
from headrace.server.settings import EngineSettings, ModelFile
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.executor.base import ExecutorSpec


def built(tmp_path: Path, **changes: object) -> ExecutorSpec:
    path = tmp_path / "tiny.gguf"
    if not path.exists():
        write_tiny_gguf(path)
    fields = {"kv_cache_tokens": 1024, "threads": 1, "precision": "f32", **changes}
    executor = executor_builder(
        ModelFile(path=str(path), name="tiny"),
        EngineSettings(**fields),
        cache_dir=tmp_path,
        progress=lambda _: None,
    )()
    executor.close()
    return executor.spec


@pytest.mark.parametrize(
    ("setting", "value", "field"),
    [
        ("weight_form", "dense", "model_identity"),
        ("kv_precision", "u8", "block_bytes"),
        ("kv_precision", "f32", "block_bytes"),
        ("kv_cache_tokens", 2048, "num_blocks"),
        ("max_model_len", 64, "max_model_len"),
    ],
)
def test_a_setting_is_seen_in_the_executor(tmp_path: Path, setting: str, value: object, field: str):
    usual, changed = built(tmp_path), built(tmp_path, **{setting: value})
    assert getattr(usual, field) != getattr(changed, field)
