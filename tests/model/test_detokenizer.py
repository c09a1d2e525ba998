"""Streamed text is the whole text, and no piece of it ends inside a character."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.detokenizer import Detokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.model.text import TextModel
    from headrace.model.tokenizer import Tokenizer

PIECES = (*(bytes([byte]) for byte in range(256)), "中😀".encode(), b" ", b"")
TOKENS = st.lists(st.integers(0, len(PIECES) - 1)) | st.text().map(lambda text: [*text.encode()])


def cut(tokens: list[int], places: list[int]) -> Iterator[list[int]]:
    borders = sorted({0, len(tokens), *(place % (len(tokens) + 1) for place in places)})
    for start, end in pairwise(borders):
        yield tokens[start:end]


@given(tokens=TOKENS, places=st.lists(st.integers(0, 1000)), drops_space=st.booleans())
def test_text_is_the_same_however_it_is_cut(
    tokens: list[int], places: list[int], drops_space: bool
):
    detokenizer = Detokenizer(PIECES, drops_space=drops_space)
    streamed = "".join([detokenizer.push(part) for part in cut(tokens, places)])
    whole = b"".join(PIECES[token] for token in tokens)
    if drops_space:
        whole = whole.removeprefix(b" ")
    assert streamed + detokenizer.flush() == whole.decode(errors="replace")


@given(text=st.text())
def test_valid_text_never_shows_a_replacement_on_its_way(text: str):
    detokenizer = Detokenizer(PIECES)
    shown = [detokenizer.push([byte]) for byte in text.encode()]
    assert "".join(shown) == text
    assert detokenizer.flush() == ""
    assert all(len(piece) <= 1 for piece in shown)


def test_an_unfinished_character_waits_and_is_replaced_at_the_end():
    detokenizer = Detokenizer(PIECES)
    assert detokenizer.push([0xF0, 0x9F]) == ""
    assert detokenizer.push([0x98]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_a_broken_character_is_replaced_when_the_next_begins():
    detokenizer = Detokenizer(PIECES)
    assert detokenizer.push([0xF0, 0x9F]) == ""
    assert detokenizer.push([ord("a")]) == "\ufffda"


@settings(deadline=None)
@given(text=st.text("the mill 😀中\n", max_size=30), places=st.lists(st.integers(0, 1000)))
def test_streaming_agrees_with_decode_for_both_kinds_of_tokenizer(
    text: str, places: list[int], tiny: TextModel, sentence_piece: Tokenizer
):
    for tokenizer in (tiny.tokenizer, sentence_piece):
        tokens = tokenizer.encode(text)
        detokenizer = tokenizer.detokenizer(continues=False)
        streamed = "".join([detokenizer.push(part) for part in cut(tokens, places)])
        assert streamed + detokenizer.flush() == tokenizer.decode(tokens) == text


def test_control_tokens_are_not_shown(tiny: TextModel):
    detokenizer = tiny.tokenizer.detokenizer(continues=False)
    assert detokenizer.push([1, *tiny.tokenizer.encode("hi"), 2]) == "hi"
