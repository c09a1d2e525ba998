"""Model files that tests of this room share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.config import read_environment
from headrace.model.metadata import Metadata
from headrace.model.pull import pull
from headrace.model.registry import resolve
from headrace.model.text import TextModel, load_text_model
from headrace.model.tokenizer import Tokenizer, build_tokenizer
from headrace.testing.tiny_model import write_tiny_gguf

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> TextModel:
    return load_text_model(tiny_path)


@pytest.fixture(scope="session")
def smollm2() -> TextModel:
    source = resolve("smollm2-135m-instruct")
    return load_text_model(pull(source, read_environment().cache_dir))


@pytest.fixture(scope="session")
def sentence_piece() -> Tokenizer:
    """A vocabulary of 420 pieces that the sentencepiece package learnt from eighteen lines."""
    golden = json.loads((GOLDEN / "sentence_piece.json").read_text())
    return build_tokenizer(
        Metadata(
            {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.tokens": tuple(golden["pieces"]),
                "tokenizer.ggml.scores": tuple(golden["scores"]),
                "tokenizer.ggml.token_type": tuple(golden["types"]),
                "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.eos_token_id": 2,
            },
            source="sentence_piece.json",
        )
    )
