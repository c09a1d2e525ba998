"""Bytes of tokens."""

from __future__ import annotations

import pytest

from headrace.model.byte_level import BYTE_TO_CHAR, CHAR_TO_BYTE
from headrace.model.metadata import Metadata
from headrace.model.vocabulary import Vocabulary, read_vocabulary


def vocabulary(model: str, texts: tuple[str, ...], types: tuple[int, ...]) -> Vocabulary:
    return read_vocabulary(
        Metadata(
            {
                "tokenizer.ggml.model": model,
                "tokenizer.ggml.tokens": texts,
                "tokenizer.ggml.token_type": types,
            },
            source="m",
        )
    )


def test_the_byte_alphabet_has_a_printable_character_for_each_byte():
    assert sorted(BYTE_TO_CHAR) == list(range(256))
    assert {CHAR_TO_BYTE[char]: char for char in CHAR_TO_BYTE} == BYTE_TO_CHAR
    assert all(char.isprintable() and not char.isspace() for char in CHAR_TO_BYTE)
    assert BYTE_TO_CHAR[ord(" ")] == "\u0120"
    assert BYTE_TO_CHAR[ord("\n")] == "\u010a"


@pytest.mark.parametrize(
    ("model", "text", "kind", "piece"),
    [
        ("gpt2", "\u0120the", 1, b" the"),
        ("gpt2", "\u00e4\u00bd\u0142", 1, "你".encode()[:2] + b"\xa0"),
        ("gpt2", "two words\u00a0", 1, b"two words\xc2\xa0"),  # spaces are not in the alphabet
        ("gpt2", "<\u0120>", 3, "<\u0120>".encode()),
        ("gpt2", "<\u0120>", 4, "<\u0120>".encode()),
        ("llama", "\u2581the\u2581", 1, b" the "),
        ("llama", "\u2581the", 4, "\u2581the".encode()),
        ("llama", "<0x0A>", 6, b"\n"),
        ("llama", "<0xFF>", 6, b"\xff"),
        ("llama", "<0xZZ>", 6, b"<0xZZ>"),
        ("llama", "<unk>", 2, b"<unk>"),
    ],
)
def test_a_token_stands_for_its_bytes(model: str, text: str, kind: int, piece: bytes):
    assert vocabulary(model, (text,), (kind,)).pieces == (piece,)


def test_control_tokens_have_names_of_two_characters_or_more():
    found = vocabulary("gpt2", ("<s>", "x", "", "</s>", "<unk>", "ab"), (3, 3, 3, 3, 2, 1))
    assert found.control_ids == {"<s>": 0, "</s>": 3, "<unk>": 4}
