"""Grammars: exactly the valid tokens, on exactly the model's ids, at a bounded cost."""

from __future__ import annotations

import json
import random
import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from headrace.errors import BadGrammar, MissingExtra
from headrace.model.grammar import MAX_GRAMMAR_BYTES, Grammar, GrammarCompiler, is_nested_deeper
from headrace.types import Constraint, ConstraintKind

if TYPE_CHECKING:
    from headrace.model.text import TextModel
    from headrace.model.tokenizer import Tokenizer

LIMIT_SECONDS = 1.0
"""Of the processor: far more than the hostile need here, far less than they would take."""


@pytest.fixture(scope="session")
def compiler(tiny: TextModel) -> GrammarCompiler:
    return GrammarCompiler(lambda: tiny.tokenizer)


@pytest.fixture(scope="session")
def real(smollm2: TextModel) -> GrammarCompiler:
    return GrammarCompiler(lambda: smollm2.tokenizer)


def schema(value: object) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def regex(text: str) -> Constraint:
    return Constraint(ConstraintKind.REGEX, text)


def lark(text: str) -> Constraint:
    return Constraint(ConstraintKind.GRAMMAR, text)


def allowed(grammar: Grammar) -> list[int]:
    return np.flatnonzero(~grammar.forbidden()).tolist()


def spell(tokenizer: Tokenizer, tokens: list[int]) -> bytes:
    return b"".join(tokenizer.token_bytes(token) for token in tokens)


WORDS = ["the mill", "the miller", "then", "a", "and", "\u00e9t\u00e9", "\u6c34", ""]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, unique=True), seed=st.integers(0, 999))
def test_a_token_may_follow_exactly_if_some_word_of_the_language_goes_on_so(
    compiler: GrammarCompiler, tiny: TextModel, words: list[str], seed: int
) -> None:
    """The oracle knows the whole language and compares bytes."""
    grammar = compiler.compile(lark("start: " + " | ".join(map(json.dumps, words))))
    language = [word.encode() for word in words]
    tokenizer, rng, said = tiny.tokenizer, random.Random(seed), b""
    for _ in range(40):
        expected = [
            token
            for token in range(tokenizer.vocab_size)
            if token not in tokenizer.hidden_ids
            and any(word.startswith(said + tokenizer.token_bytes(token)) for word in language)
        ]
        assert grammar.is_whole() == (said in language)
        next_bytes = {word[len(said) :][:1] for word in language if word.startswith(said)}
        if len(next_bytes) > 1:
            assert allowed(grammar) == expected
        else:  # forced: then llguidance admits the token that the encoder would write
            assert set(allowed(grammar)) <= set(expected)
            assert bool(allowed(grammar)) == bool(expected)
        if not expected:
            return
        token = rng.choice(expected)
        grammar.consume([token])
        said += tokenizer.token_bytes(token)
    raise AssertionError("a finite language has an end")


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Wheel(Struct, forbid_unknown_fields=True):
    radius: Annotated[int, Meta(ge=1, le=300)]
    paddles: Annotated[list[bool], Meta(max_length=3)]


class Mill(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=6)]
    colour: Colour
    wheel: Wheel | None
    water: float


def walk(grammar: Grammar, tokenizer: Tokenizer, rng: random.Random, limit: int) -> str | None:
    """Say anything that is valid, preferring to end; None if that takes too long."""
    said: list[int] = []
    for _ in range(limit):
        tokens = allowed(grammar)
        if grammar.is_whole():
            return spell(tokenizer, said).decode()
        closing = [t for t in tokens if tokenizer.token_bytes(t)[:1] in (b'"', b"}", b"]", b",")]
        token = rng.choice(closing if closing and rng.random() < 0.5 else tokens)
        grammar.consume([token])
        said.append(token)
    return None


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_said_under_a_schema_is_valid(
    compiler: GrammarCompiler, tiny: TextModel, seed: int
) -> None:
    """The oracle is msgspec, which made the schema."""
    grammar = compiler.compile(schema(msgspec.json.schema(Mill)))
    text = walk(grammar, tiny.tokenizer, random.Random(seed), 400)
    if text is not None:
        msgspec.json.decode(text, type=Mill)


def test_most_walks_under_a_schema_come_to_an_end(compiler: GrammarCompiler, tiny: TextModel):
    grammar = compiler.compile(schema(msgspec.json.schema(Mill)))
    texts = [walk(grammar.copy(), tiny.tokenizer, random.Random(seed), 400) for seed in range(20)]
    assert sum(text is not None for text in texts) > 15


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_the_tokens_of_any_text_are_followed(
    compiler: GrammarCompiler, tiny: TextModel, text: str
) -> None:
    grammar = compiler.compile(regex("(.|\n)*"))
    grammar.consume(tiny.tokenizer.encode(text))
    assert grammar.is_whole()


def test_byte_tokens_and_spaces_of_a_sentence_piece_model_are_its_bytes(sentence_piece: Tokenizer):
    compiler = GrammarCompiler(lambda: sentence_piece)
    for text in ("the water", "\u6c34 and \U0001f30a", "El r\u00edo"):
        grammar = compiler.compile(lark(f"start: {json.dumps(' ' + text)}"))
        grammar.consume(sentence_piece.encode(text))
        assert grammar.is_whole()
        assert allowed(grammar) == []


def test_control_tokens_never_follow(compiler: GrammarCompiler, tiny: TextModel):
    grammar = compiler.compile(regex("(.|\n)*"))
    assert not set(allowed(grammar)) & tiny.tokenizer.hidden_ids
    named = compiler.compile(lark('start: "<|im_end|>"'))
    assert not set(allowed(named)) & tiny.tokenizer.hidden_ids


def test_json_is_written_on_one_line_unless_the_schema_says_otherwise(compiler: GrammarCompiler):
    fields = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    free = fields | {"x-guidance": {"whitespace_flexible": True}}
    for value, count in ((fields, 0), (free, 1)):
        grammar = compiler.compile(schema(value))
        grammar.consume([ord("{") + 3])  # the byte tokens come after three control tokens
        assert grammar.count_valid([ord("\n") + 3]) == count


def test_json_object_is_an_object(compiler: GrammarCompiler, tiny: TextModel):
    grammar = compiler.compile(Constraint(ConstraintKind.JSON_OBJECT))
    encode = tiny.tokenizer.encode
    assert grammar.count_valid(encode("[1]")) == 0
    grammar.consume(encode('{"a": [1, {"b": null}]}'))
    assert grammar.is_whole()
    assert allowed(grammar) == []


def test_gbnf_is_taken_too(compiler: GrammarCompiler, tiny: TextModel):
    grammar = compiler.compile(lark('root ::= "a" tail\ntail ::= [0-9]+ "."'))
    grammar.consume(tiny.tokenizer.encode("a10."))
    assert grammar.is_whole()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 30), back=st.integers(0, 10))
def test_replayed_copied_and_rolled_back_it_goes_on_the_same(
    compiler: GrammarCompiler, tiny: TextModel, cut: int, back: int
) -> None:
    constraint = schema(msgspec.json.schema(Mill))
    tokens = tiny.tokenizer.encode('{"name": "o", "colour": "red", "wheel": null, "water": 1.5}')
    cut = min(cut, len(tokens))
    grammar = compiler.compile(constraint)
    for token in tokens[:cut]:
        grammar.consume([token])
    replayed = compiler.compile(constraint)
    replayed.consume(tokens[:cut])
    fork = grammar.copy()
    draft = tokens[cut : cut + back]
    assert fork.count_valid([*draft, 0]) == len(draft)
    fork.consume(draft)
    fork.rollback(len(draft))
    assert allowed(grammar) == allowed(replayed) == allowed(fork)
    fork.consume(tokens[cut:])
    assert fork.is_whole()
    assert allowed(grammar) == allowed(replayed)


def nested(depth: int) -> Any:  # noqa: ANN401 - a schema
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


HOSTILE = {
    "explosion": regex("a{1000}{1000}"),
    "explosion behind": regex("x(a{1000}){1000}"),
    "unclosed": regex("("),
    "parentheses": regex("(" * 30_000 + "a" + ")" * 30_000),
    "look-ahead": regex("(?=a)b"),
    "nested schema": schema(nested(120)),
    "nested deeper": schema(nested(300)),
    "brackets": Constraint(ConstraintKind.JSON_SCHEMA, "[" * 1_000_000),
    "quotes": Constraint(ConstraintKind.JSON_SCHEMA, '"\\' * 500_000),
    "refers to itself": schema({"$ref": "#"}),
    "refers outside": schema({"$ref": "http://127.0.0.1:1/schema"}),
    "refers to nothing": schema({"$ref": "#/$defs/x"}),
    "no type": schema({"type": "strin"}),
    "nothing is valid": schema(False),
    "no schema": schema(5),
    "no json": Constraint(ConstraintKind.JSON_SCHEMA, '{"type":'),
    "product": schema(
        {
            "allOf": [
                {"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(6)]}
                for i in range(8)
            ]
        }
    ),
    "enum of 100,000": schema({"enum": [f"value {i}" for i in range(100_000)]}),
    "lark in parentheses": lark("start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "left recursion without end": lark("start: start"),
    "rule that is not there": lark("start: other"),
    "gbnf in parentheses": lark("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "gbnf without end": lark("root ::= [" + "a" * 60_000),
    "no grammar": lark("hello"),
    "surrogate": regex("\ud800"),
    "two megabytes": regex("a" * (MAX_GRAMMAR_BYTES + 1)),
}


@pytest.mark.parametrize("constraint", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_grammar_is_refused_soon(real: GrammarCompiler, constraint: Constraint) -> None:
    real.warm_up()
    begun = time.process_time()
    with pytest.raises(BadGrammar) as refusal:
        real.check(constraint)
    assert time.process_time() - begun < LIMIT_SECONDS
    assert 0 < len(str(refusal.value)) <= 200


FINE = {
    "recursive": schema({"type": "object", "properties": {"next": {"$ref": "#"}}}),
    "big bounds": schema({"type": "array", "items": {"maxLength": 10**9}, "maxItems": 10**6}),
    "hard for others": regex("[ab]*a[ab]{60}"),
    "enum of 2,000": schema({"enum": [f"value {i}" for i in range(2000)]}),
    "nested": schema(nested(40)),
    "empty": regex(""),
    "one token": regex("a"),
    "ambiguous": lark('start: start start | "a"'),
}


@pytest.mark.parametrize("constraint", FINE.values(), ids=FINE)
def test_an_unusual_grammar_is_taken_soon(real: GrammarCompiler, constraint: Constraint) -> None:
    real.warm_up()
    begun = time.process_time()
    real.check(constraint)
    assert time.process_time() - begun < LIMIT_SECONDS


def test_a_token_that_may_not_follow_is_an_error_for_good(compiler: GrammarCompiler):
    grammar = compiler.compile(regex("ab"))
    with pytest.raises(BadGrammar):
        grammar.consume([ord("b") + 3])
    with pytest.raises(BadGrammar):
        grammar.forbidden()


def test_brackets_in_strings_are_not_nested():
    text = '{"a[[": ["\\"[", [1]]}'
    assert is_nested_deeper(text, 2)
    assert not is_nested_deeper(text, 3)


def test_without_llguidance_the_error_says_what_to_install(
    tiny: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"pip install 'headrace\[engine\]'"):
        GrammarCompiler(lambda: tiny.tokenizer).compile(regex("a"))
