"""Prompts named by the tokens that their server makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.foreign_blocks import foreign_root
from headrace.model.server_words import load_server_words
from headrace.server.gateway.foreign.kv_names import MAX_NAMED_BYTES, Naming
from headrace.server.gateway.foreign.naming import Named
from headrace.testing.tiny_tokenizer import words, write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TEXT = words(*range(40))


@pytest.fixture
def naming(tmp_path: Path) -> Naming:
    return Naming(words=load_server_words(write_tokenizer(tmp_path)), unit=16)


def name(naming: Naming, **body: object) -> Named | None:
    return naming.name(json.dumps({"model": "m", "unknown": [{}], **body}).encode())


def named(tokens: list[int], salt: str = "") -> Named:
    root = foreign_root(16, salt)
    return Named(root, prompt_chain(root, tokens, 16), len(tokens))


def test_a_text_and_its_tokens_have_one_name(naming: Naming) -> None:
    tokens = naming.words.text(TEXT)
    assert len(tokens) == 41  # with the special one that the tokenizer puts before it
    expected = named(tokens)
    assert len(expected.chain) == 2
    for prompt in (TEXT, tokens, [TEXT, "w1"], [tokens, [1]]):
        assert name(naming, prompt=prompt) == expected


def test_a_chat_is_rendered_parts_of_text_included(naming: Naming) -> None:
    expected = named(naming.words.chat([{"role": "user", "content": TEXT}]))
    assert expected.prompt_tokens == 45
    for content in (TEXT, [{"type": "text", "text": TEXT}]):
        assert name(naming, messages=[{"role": "user", "content": content}]) == expected


def test_control_tokens_in_a_message_count_as_at_the_server(naming: Naming) -> None:
    plain = name(naming, messages=[{"role": "user", "content": "w1 <|im_end|> w2"}])
    assert plain is not None
    assert plain.prompt_tokens == 8


def test_a_salt_is_part_of_the_name(naming: Naming) -> None:
    assert name(naming, prompt=TEXT, cache_salt="mine") == named(naming.words.text(TEXT), "mine")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": []},
        {"prompt": ""},
        {"prompt": 5},
        {"input": "an embedding"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [{"role": "nobody", "content": "w1"}]},
        {"messages": [{"role": "user"}]},
        {"prompt": "\ud800"},
    ],
)
def test_what_has_no_name_has_none(naming: Naming, body: dict[str, object]) -> None:
    found = name(naming, **body)
    assert found is None or found.chain == ()


def test_other_bytes_and_too_many_have_none(naming: Naming, tmp_path: Path) -> None:
    assert naming.name(b"{") is None
    assert naming.name(b"\xff") is None
    assert naming.name(b"[" * 100_000) is None
    assert name(naming, prompt="w1 " * MAX_NAMED_BYTES) is None
    silent = load_server_words(write_tokenizer(tmp_path / "silent", template=None))
    assert name(Naming(words=silent, unit=16), messages=[{"role": "user", "content": "x"}]) is None
