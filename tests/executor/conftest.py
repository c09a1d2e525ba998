"""A tiny model's grammars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.model.gguf import read_gguf
from headrace.model.grammar import GrammarCompiler
from headrace.model.tokenizer import build_tokenizer
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from headrace.model.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level vocabulary of 304 tokens, the byte b at 3 + b."""
    path = write_tiny_gguf(tmp_path_factory.mktemp("words") / "tiny.gguf")
    return build_tokenizer(read_gguf(path).metadata)


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: tokenizer)
