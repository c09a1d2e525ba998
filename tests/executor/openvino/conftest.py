"""Tiny models, and executors over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from executor_steps import TinyModel

from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.executor.openvino.executor import OpenVinoExecutor


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """Return a maker of tiny models; the arguments are those of write_tiny_gguf."""
    directory = tmp_path_factory.mktemp("tiny")
    made: dict[str, TinyModel] = {}

    def make(**arguments: object) -> TinyModel:
        key = repr(sorted(arguments.items()))
        if key not in made:
            path = directory / f"{len(made)}.gguf"
            made[key] = TinyModel(
                write_tiny_gguf(path, **arguments),  # type: ignore[arg-type]
                directory / "cache",
            )
        return made[key]

    return make


@pytest.fixture(scope="session")
def executor(tiny: Callable[..., TinyModel]) -> OpenVinoExecutor:
    """Return a llama model's executor in f32 throughout; tests use blocks and ids of their own."""
    return tiny().executor()
