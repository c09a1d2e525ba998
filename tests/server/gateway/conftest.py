"""A tiny real model's words, once for all tests of the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.model.text import load_text_model
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from headrace.model.text import TextModel


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    """A byte-level model of 304 tokens with the ChatML template and a context of 1,024."""
    return load_text_model(write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf"))
