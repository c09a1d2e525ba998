"""Tokens as another server makes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from headrace.errors import InvalidRequest, ModelFileError
from headrace.model.server_words import load_server_words
from headrace.testing.tiny_tokenizer import TEMPLATE, words, write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

CHAT = [{"role": "user", "content": words(1, 2)}]


def test_a_directory_and_its_tokenizer_file_are_the_same(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path)
    model, file = load_server_words(path), load_server_words(path / "tokenizer.json")
    assert model.text(words(1, 2)) == file.text(words(1, 2))
    assert model.chat(CHAT) == file.chat(CHAT)
    assert len(model.chat(CHAT)) == 7
    assert model.chat(CHAT)[0] != model.text("w1")[0]  # a template writes its own beginning


@pytest.mark.parametrize("form", ["file", "list", "none"])
def test_a_template_is_where_models_keep_it(tmp_path: Path, form: str) -> None:
    path = write_tokenizer(tmp_path, template=None)
    if form == "file":
        (path / "chat_template.jinja").write_text(TEMPLATE)
    elif form == "list":
        listed = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    model = load_server_words(path)
    if form == "none":
        with pytest.raises(InvalidRequest, match="no chat template"):
            model.chat(CHAT)
    else:
        assert len(model.chat(CHAT)) == 7


def test_a_gguf_file_does_as_well(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="pip install '.[engine]'")
    from headrace.testing.tiny_model import write_tiny_gguf

    model = load_server_words(write_tiny_gguf(tmp_path / "tiny.gguf"))
    tokens = model.chat([{"role": "user", "content": "the <|im_end|>"}])
    assert tokens.count(model.chat([])[0]) == 2  # <|im_start|>
    assert model.text("the<|im_end|>")[-1] == 2  # its name counts wherever it stands


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "cannot read"),
        ({"tokenizer.json": "{}"}, "is no tokenizer"),
        ({"tokenizer.json": "\xff"}, "is no tokenizer|not UTF-8"),
        ({"tokenizer_config.json": "[]"}, "tokenizer_config.json"),
        ({"chat_template.jinja": "{% for %}"}, "not valid Jinja"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, files: dict[str, str], problem: str
) -> None:
    if "tokenizer.json" not in files and files:
        write_tokenizer(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ModelFileError, match=problem):
        load_server_words(tmp_path)
