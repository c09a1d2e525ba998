"""Grammars over a model's tokens: which tokens may follow, so that the text stays valid.

A ``Constraint`` (types.py) is compiled by llguidance (https://github.com/guidance-ai/llguidance):
a lexer of regular-expression derivatives below an Earley parser, walked over a trie of all tokens.
Both ends need it: a gateway to tell a client at once that its grammar is none, an engine to hold
output to it. Nothing is shared between two compiled grammars: copies of one share a lexer and its
limits, so that one request could use up another's.

What a grammar may cost is bounded four times: by its length and nesting before it is compiled, by
llguidance's own limits while it is (``_STEP_FUEL`` and its like), by trying it (``check``: that it
compiles proves nothing, since ``a{1000}{1000}`` fails at its second token), and at each token
afterwards.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, assert_never

import numpy as np

from headrace.errors import BadGrammar, MissingExtra
from headrace.types import ConstraintKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import llguidance
    import numpy.typing as npt
    from llguidance._lib import JsonCompileOptions

    from headrace.model.tokenizer import Tokenizer
    from headrace.types import Constraint, TokenId

MAX_GRAMMAR_BYTES = 1 << 20
MAX_NESTING = 100
"""Brackets within brackets, in a schema. llguidance gives up at about 120."""

JSON_FORM: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""JSON on one line, as Python writes it. With free whitespace a small model may write blanks for
ever. A schema's own ``x-guidance`` overrides it."""

# A tenth of llguidance's defaults: some 50 ms and 5 MB at worst, and far from real schemas.
_INITIAL_FUEL = 100_000
_STEP_FUEL = 50_000
_LEXER_STATES = 20_000
_GRAMMAR_SIZE = 50_000

_TRIAL_TOKENS = 3
_MAX_REASON_CHARS = 200
_STRINGS = re.compile(r'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


class Grammar:
    """A compiled grammar and how far its text has come. For one thread at a time.

    Raises BadGrammar from then on when a limit is hit or a token is consumed that may not follow.
    """

    def __init__(self, matcher: llguidance.LLMatcher, tokens: llguidance.LLTokenizer) -> None:
        self._matcher = matcher
        self._tokens = tokens

    def forbidden(self) -> npt.NDArray[np.bool_]:
        """Return which tokens the text may not go on with, [V]: end tokens are among them."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._raise_error()
        forbidden_V = np.unpackbits(~bits, count=self._tokens.vocab_size, bitorder="little").view(
            np.bool_
        )
        forbidden_V[self._tokens.eos_tokens] = True
        return forbidden_V

    def is_whole(self) -> bool:
        """Tell whether the text so far is one of the grammar's: it may end."""
        return self._matcher.is_accepting()

    def consume(self, tokens: Sequence[TokenId]) -> None:
        """Go on by these tokens."""
        self._matcher.consume_tokens(list(tokens))
        self._raise_error()

    def count_valid(self, tokens: Sequence[TokenId]) -> int:
        """Return how many of these tokens may follow, one after the other. Changes nothing."""
        return self._matcher.validate_tokens(list(tokens))

    def rollback(self, num_tokens: int) -> None:
        """Take back the tokens consumed last."""
        self._matcher.rollback(num_tokens)
        self._raise_error()

    def copy(self) -> Grammar:
        """Return another that goes its own way from here. The two share the lexer's limits."""
        return Grammar(self._matcher.deep_copy(), self._tokens)

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise BadGrammar(_one_line(self._matcher.get_error()))


class GrammarCompiler:
    """Compiles grammars over one model's tokens. Safe to use from several threads.

    ``load`` is called at the first use (or by ``warm_up``). For 49,152 tokens that holds some 50 MB
    from then on, half of it the tokenizer.
    """

    def __init__(self, load: Callable[[], Tokenizer]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._tokens: llguidance.LLTokenizer | None = None

    def warm_up(self) -> None:
        """Take the time of the first use now: 0.1 s for 49,152 tokens, most of it in the GIL.

        Raises MissingExtra, BadGrammar (for a model that has no end token).
        """
        self._llguidance_tokens()

    def compile(self, constraint: Constraint) -> Grammar:
        """Compile a constraint. Raises BadGrammar, MissingExtra."""
        _check_size(constraint)
        tokens = self._llguidance_tokens()
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(
            tokens,
            _grammar_text(constraint),
            limits=LLParserLimits(
                initial_lexer_fuel=_INITIAL_FUEL,
                step_lexer_fuel=_STEP_FUEL,
                max_lexer_states=_LEXER_STATES,
                max_grammar_size=_GRAMMAR_SIZE,
                verbose_errors=False,
            ),
            log_level=0,
        )
        if matcher.is_error():
            raise BadGrammar(_one_line(matcher.get_error()))
        return Grammar(matcher, tokens)

    def check(self, constraint: Constraint) -> None:
        """Compile a constraint and go a few tokens. Raises BadGrammar, MissingExtra."""
        grammar = self.compile(constraint)
        for _ in range(_TRIAL_TOKENS):
            forbidden_V = grammar.forbidden()
            token = int(forbidden_V.argmin())
            if forbidden_V[token]:
                return  # the end of all there is to say
            grammar.consume([token])
        grammar.forbidden()

    def _llguidance_tokens(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._tokens is None:
                self._tokens = _build_tokens(self._load())
            return self._tokens


class _Words:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.hidden_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[TokenId]:
        return self._tokenizer.encode(text.decode(errors="replace"))


def _build_tokens(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise MissingExtra(
            "structured output needs llguidance: pip install 'headrace[engine]'"
        ) from None
    if not tokenizer.end_ids:
        raise BadGrammar("the model has no end-of-sequence token: no grammar can end its output")
    words = _Words(tokenizer)
    if words.eos_token_id is None:
        words.eos_token_id = tokenizer.end_ids[0]
    return LLTokenizer(
        TokenizerWrapper(words),
        eos_token=list(tokenizer.end_ids),
        slices=LLTokenizer.json_slices(),
    )


def _grammar_text(constraint: Constraint) -> str:
    """Return a constraint in llguidance's language. Raises BadGrammar."""
    from llguidance import LLMatcher

    kind, text = constraint
    match kind:
        case ConstraintKind.JSON_OBJECT:
            text = '{"type": "object"}'
        case ConstraintKind.JSON_SCHEMA:
            pass
        case ConstraintKind.REGEX:
            return LLMatcher.grammar_from_regex(text)
        case ConstraintKind.GRAMMAR:
            return LLMatcher.grammar_from_lark(_lark(text))
        case _:
            assert_never(kind)
    try:
        return LLMatcher.grammar_from_json_schema(text, defaults=JSON_FORM)
    except ValueError as error:
        raise BadGrammar(_one_line(str(error))) from None


def _lark(text: str) -> str:
    """Return a grammar in Lark; one in GBNF (llama.cpp's notation) is translated."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as error:  # a parser by others, which raises plain Exception too
        raise BadGrammar(_one_line(str(error))) from None


def _check_size(constraint: Constraint) -> None:
    try:
        num_bytes = len(constraint.text.encode())
    except UnicodeEncodeError:
        raise BadGrammar("it holds lone surrogates, which no encoding has") from None
    if num_bytes > MAX_GRAMMAR_BYTES:
        raise BadGrammar(f"it has {num_bytes} bytes; at most {MAX_GRAMMAR_BYTES} are compiled")
    is_schema = constraint.kind is ConstraintKind.JSON_SCHEMA
    if is_schema and is_nested_deeper(constraint.text, MAX_NESTING):
        raise BadGrammar(f"it is nested more than {MAX_NESTING} deep; that is not compiled")


def is_nested_deeper(text: str, limit: int) -> bool:
    """Tell whether more than ``limit`` brackets stand within each other in JSON."""
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > limit:
            return True
    return False


def _one_line(text: str) -> str:
    return " ".join(text.replace("<non-verbose/>", "").split())[:_MAX_REASON_CHARS]
