"""Tokens against golden vectors of the families' own tokenizers, and back to the same text.

golden/smollm2*.json: Hugging Face tokenizers with the model's published tokenizer.json and chat
template. golden/words.json: the published pre-tokenizer patterns run by the regex package (smollm:
its published tokenizer.json). golden/sentence_piece.json: the sentencepiece package.
"""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest, ModelFileError
from headrace.model.byte_level import BYTE_TO_CHAR, CHAR_TO_BYTE
from headrace.model.encoder import build_encoder
from headrace.model.metadata import Metadata, MetadataValue
from headrace.model.tokenizer import Tokenizer, build_tokenizer
from headrace.model.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from headrace.model.text import TextModel

GOLDEN = Path(__file__).parent / "golden"
BYTES = tuple(BYTE_TO_CHAR[byte] for byte in range(256))
TEXT = st.text(max_size=40) | st.text("ab '\n\t😀<|im_end|>中e\u0301\ufdd0", max_size=40)


def byte_level(**values: MetadataValue) -> Metadata:
    """A vocabulary of the 256 bytes and ``extra``, with GGUF keys shortened to their last part."""
    extra = values.pop("extra", ())
    assert isinstance(extra, tuple)
    defaults: dict[str, MetadataValue] = {
        "model": "gpt2",
        "tokens": (*BYTES, *extra),  # type: ignore[dict-item]
        "merges": (),
    }
    pairs = defaults | values
    return Metadata({f"tokenizer.ggml.{key}": value for key, value in pairs.items()}, source="m")


@pytest.mark.model
@pytest.mark.timeout(600)
def test_smollm2_gives_the_golden_tokens(smollm2: TextModel):
    for case in json.loads((GOLDEN / "smollm2.json").read_text()):
        found = smollm2.tokenizer.encode(case["text"], parse_special=True)
        assert found == case["ids"], case["text"]
        assert smollm2.tokenizer.decode(found, skip_special=False) == case["text"]


@pytest.mark.model
@pytest.mark.timeout(600)
def test_smollm2_knows_its_special_tokens(smollm2: TextModel):
    tokenizer = smollm2.tokenizer
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)
    assert tokenizer.end_ids == (0, 2)
    assert not tokenizer.adds_bos
    assert tokenizer.token_bytes(2) == b"<|im_end|>"
    assert tokenizer.decode([1, 9690, 2]) == "system"


def test_words_are_cut_as_the_families_cut_them():
    for name, cases in json.loads((GOLDEN / "words.json").read_text()).items():
        metadata = byte_level(pre=name)
        cutter = build_encoder(read_vocabulary(metadata), metadata).pre_tokenizer
        assert cutter is not None
        for words in cases:
            found = [word for word, _ in cutter.pre_tokenize_str("".join(words))]
            text = [bytes(CHAR_TO_BYTE[char] for char in word).decode() for word in found]
            assert text == words, name


def test_a_sentence_piece_vocabulary_gives_the_golden_tokens(sentence_piece: Tokenizer):
    golden = json.loads((GOLDEN / "sentence_piece.json").read_text())
    for case in golden["cases"]:
        assert sentence_piece.encode(case["text"]) == case["ids"], case["text"]
        assert sentence_piece.decode(case["ids"]) == case["text"]


@settings(deadline=None)
@given(text=TEXT)
def test_decoding_gives_back_what_was_encoded(
    text: str, tiny: TextModel, sentence_piece: Tokenizer
):
    assert tiny.tokenizer.decode(tiny.tokenizer.encode(text)) == text
    assert sentence_piece.decode(sentence_piece.encode(text)) == text


@settings(deadline=None)
@given(text=TEXT)
def test_special_tokens_are_decoded_by_name(text: str, tiny: TextModel):
    tokens = tiny.tokenizer.encode(text, parse_special=True)
    assert tiny.tokenizer.decode(tokens, skip_special=False) == text


@settings(deadline=None)
@given(text=TEXT)
def test_text_that_was_not_parsed_for_special_tokens_holds_none(text: str, tiny: TextModel):
    assert not {0, 1, 2} & set(tiny.tokenizer.encode(text))


@settings(deadline=None)
@given(text=TEXT)
def test_bytes_of_tokens_join_to_the_text(text: str, tiny: TextModel):
    tokenizer = tiny.tokenizer
    found = b"".join(tokenizer.token_bytes(token) for token in tokenizer.encode(text))
    assert found == text.encode()


def test_merges_are_applied_in_the_order_of_the_file():
    tokens = ("ab", "bc", "abc")
    first = build_tokenizer(byte_level(extra=tokens, merges=("a b", "b c", "ab c")))
    second = build_tokenizer(byte_level(extra=tokens, merges=("b c", "a b", "a bc")))
    third = build_tokenizer(byte_level(extra=tokens, merges=("b c", "a b")))
    pieces = [
        [tokenizer.token_bytes(token) for token in tokenizer.encode("abc")]
        for tokenizer in (first, second, third)
    ]
    assert pieces == [[b"abc"], [b"abc"], [b"a", b"bc"]]


def test_a_whole_word_is_taken_as_it_is_where_the_family_does_so():
    without_merges = {"extra": ("hello",), "merges": ()}
    llama3 = build_tokenizer(byte_level(pre="llama-bpe", **without_merges))
    assert llama3.encode("hello") == [256]
    gpt2 = build_tokenizer(byte_level(pre="gpt-2", **without_merges))
    assert len(gpt2.encode("hello")) == 5


def test_qwen_composes_characters_first():
    tokenizer = build_tokenizer(byte_level(pre="qwen2"))
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == unicodedata.normalize("NFC", "e\u0301")


def test_user_defined_tokens_are_one_token_everywhere():
    tokenizer = build_tokenizer(
        byte_level(extra=("<think>", "<s>"), token_type=(1,) * 256 + (4, 3), bos_token_id=257)
    )
    a, b = BYTES.index("a"), BYTES.index("b")
    assert tokenizer.encode("a<think>b") == [a, 256, b]
    assert tokenizer.decode([a, 256, b]) == "a<think>b"
    assert 257 not in tokenizer.encode("<s>")


def test_bos_is_added_once_and_only_where_the_model_wants_it(
    tiny: TextModel, sentence_piece: Tokenizer
):
    assert sentence_piece.adds_bos
    assert sentence_piece.encode("water", add_bos=True)[0] == 1
    assert 1 not in sentence_piece.encode("water")
    named = sentence_piece.encode("<s>water", parse_special=True, add_bos=True)
    assert named == sentence_piece.encode("water", add_bos=True)
    assert tiny.tokenizer.encode("a", add_bos=True) == tiny.tokenizer.encode("a")


@pytest.mark.parametrize(("pre", "adds_bos"), [("llama-bpe", True), ("qwen2", False)])
def test_a_file_that_does_not_say_whether_bos_is_added_follows_its_family(pre: str, adds_bos: bool):
    assert build_tokenizer(byte_level(pre=pre)).adds_bos is adds_bos
    assert build_tokenizer(byte_level(pre=pre, add_bos_token=not adds_bos)).adds_bos is not adds_bos


def test_every_kind_of_end_token_ends_a_generation():
    tokenizer = build_tokenizer(
        byte_level(
            extra=("<eos>", "<turn>", "<|eot_id|>", "<|end|>"),
            token_type=(1,) * 256 + (3, 3, 3, 1),
            eos_token_id=256,
            eot_token_id=257,
        )
    )
    assert tokenizer.end_ids == (256, 257, 258)  # <|end|> is ordinary text here


def test_a_space_before_a_sentence_belongs_to_a_prompt_that_goes_on(sentence_piece: Tokenizer):
    tokens = sentence_piece.encode("water")
    answer = sentence_piece.detokenizer(continues=False)
    assert answer.push(tokens) + answer.flush() == "water"
    continuation = sentence_piece.detokenizer(continues=True)
    assert continuation.push(tokens) + continuation.flush() == " water"


def test_text_without_a_utf_8_form_is_refused(tiny: TextModel):
    with pytest.raises(InvalidRequest, match="lone surrogates"):
        tiny.tokenizer.encode("a\ud800")


@pytest.mark.parametrize("token", [-1, 304, 2**40])
def test_a_token_that_does_not_exist_is_refused(token: int, tiny: TextModel):
    with pytest.raises(InvalidRequest, match="is not between 0 and 303") as caught:
        tiny.tokenizer.decode([5, token])
    assert caught.value.param == "tokens"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"model": "bert"}, "tokenizer kind 'bert' is not supported"),
        ({"pre": "viking"}, "pre-tokenizer 'viking' is not supported"),
        ({"tokens": ()}, "0 tokens"),
        ({"tokens": (1, 2)}, "is a list of 2 items, not a list of strings"),
        ({"tokens": ("a", "a")}, "2 tokens with 1 different texts"),
        ({"tokens": ("a" * 2000,)}, "longer than 1024 characters"),
        ({"token_type": (1, 1)}, "256 tokens and 2 valid token types"),
        ({"token_type": (9,) * 256}, "256 tokens and 0 valid token types"),
        ({"merges": ("a b",)}, "merge 'a b' is not of known tokens"),
        ({"merges": ("ab",)}, "merge 'ab' is not of known tokens"),
        ({"eos_token_id": 256}, "eos_token_id is 256, of 256 tokens"),
        ({"bos_token_id": "x"}, "is 'x', not a whole number"),
        ({"model": "llama"}, "has no 'tokenizer.ggml.scores'"),
        ({"model": "llama", "scores": (0.5,)}, "256 tokens and 1 scores"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_says_why(values: dict[str, MetadataValue], problem: str):
    with pytest.raises(ModelFileError) as caught:
        build_tokenizer(byte_level(**values))
    assert problem in str(caught.value)
    assert str(caught.value).startswith("m: ")
    assert "; use a" in str(caught.value)
