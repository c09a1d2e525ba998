"""The benchmark of eviction runs, and the optimum is one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "twin" / "eviction.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("eviction_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_order_finds_more_than_the_optimum(benchmark: ModuleType):
    prompts = benchmark.conversations(seed=3, num=200)
    shares = [benchmark.serve_at_once(prompts, 200_000, name) for name in benchmark.NAMES]
    lru, foresight, belady = shares
    assert 0 < lru < belady
    assert 0 < foresight < belady


def test_what_waits_in_the_engine_is_found_more_often_with_foresight(benchmark: ModuleType):
    prompts = benchmark.conversations(seed=3, num=150)
    share = benchmark.replay(prompts, 100_000, 2.0)
    lru, foresight, belady = (share(name) for name in benchmark.NAMES)
    assert lru < foresight <= belady
