"""Prompts: deterministic English of a wanted length in tokens, or lines of a file.

The text is made from a small grammar, so it reads like prose, tokenises like prose, and two
seeds share next to nothing (each prompt starts with a reference of its own, so that no prefix
cache carries over). With a token counter the length is exact, without one it is a guess at
1.25 tokens a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
from tokenizers import Tokenizer

from headrace.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from headrace.bench.client import Message
    from headrace.types import Tokens

CountTokens: TypeAlias = Callable[[str], int]

TOKENS_PER_WORD = 1.25  # of this grammar's text, in byte-level BPE vocabularies of 50,000
MAX_FITTING_STEPS = 400
MIN_TOKENS = 12  # below this there is no room for a reference and a sentence


def _phrases(text: str) -> tuple[str, ...]:
    """Split at semicolons; line breaks are spaces."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(";"))


_WHO = _phrases(
    """The night baker; My oldest cousin; A retired sailor; The new librarian; Every tenant;
    The bridge keeper; One of the clerks; Their grandmother; The tall carpenter; A quiet student;
    The station master; Our landlord; The weather office; Some visitors; The beekeeper; A painter"""
)
_DID = _phrases(
    """carried; borrowed; counted; polished; sketched; returned; weighed; hid; sorted; praised;
    mended; described; traded; photographed; misplaced; labelled"""
)
_WHAT = _phrases(
    """a basket of apples; the copper lamp; two heavy ledgers; an unfinished chair; a folded map;
    the morning bread; the spare keys; four glass jars; the village clock; a letter from abroad;
    the blue bicycle; several old coins; the garden tools; a wool blanket; the ferry tickets;
    a box of candles"""
)
_HOW = _phrases(
    """in the narrow street; while the rain came down; before the shop had opened;
    at the edge of the forest; as the bells were ringing; without a word to anyone;
    on the way to the harbour; during the first week of June; with both hands; for a small fee;
    after a cup of tea; because nobody else would"""
)
_FILLERS = ("again", "slowly", "there", "today", "then", "too", "alone", "twice")


class PromptLine(msgspec.Struct, forbid_unknown_fields=True):
    """A line of a prompt file."""

    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    max_tokens: int | None = None

    def content(self) -> str | Sequence[Message]:
        """Return the text, or the messages as role and content."""
        if self.messages is None:
            return self.prompt or ""
        return [(item.get("role", "user"), item.get("content", "")) for item in self.messages]


def guess_tokens(text: str) -> int:
    """Count without a tokenizer: a guess by the number of words."""
    return round(len(text.split()) * TOKENS_PER_WORD)


def load_counter(path: str) -> CountTokens:
    """Return an exact counter from a Hugging Face ``tokenizer.json``. Raises UsageError."""
    if not Path(path).is_file():
        raise UsageError(f"--tokenizer {path}: no such file (a tokenizer.json is expected)")
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the library raises bare Exception
        raise UsageError(f"--tokenizer {path}: not a tokenizer.json: {error}") from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def reference(rng: np.random.Generator) -> str:
    """Return a label that makes a text different from its first tokens on."""
    return f"{_pick(rng, 'BCDFGHJKLMNP')}{int(rng.integers(10**7)):07d}."


def sentence(rng: np.random.Generator) -> str:
    """Return one sentence."""
    return f"{_pick(rng, _WHO)} {_pick(rng, _DID)} {_pick(rng, _WHAT)} {_pick(rng, _HOW)}."


def english(
    rng: np.random.Generator, *, tokens: Tokens, count: CountTokens, head: str = "", tail: str = ""
) -> str:
    """Return ``head`` + sentences + ``tail`` of ``tokens`` tokens.

    Raises ValueError if head and tail alone are longer.
    """
    if count(head + tail) > tokens:
        raise ValueError(f"{tokens} tokens are too few for {head!r} and {tail!r}")
    body = head
    while True:
        longer = f"{body} {sentence(rng)}".lstrip()
        if count(longer + tail) > tokens:
            break
        body = longer
    return _fit(rng, body, tokens=tokens, count=count, floor=len(head), tail=tail)


def _fit(
    rng: np.random.Generator,
    body: str,
    *,
    tokens: Tokens,
    count: CountTokens,
    floor: int,
    tail: str,
) -> str:
    """Add and take single words until the count is exact, or as near as words can come."""
    best, distance = body + tail, tokens
    for _ in range(MAX_FITTING_STEPS):
        missing = tokens - count(body + tail)
        if abs(missing) < distance:
            best, distance = body + tail, abs(missing)
        if missing == 0:
            break
        if missing > 0:
            body = f"{body} {_pick(rng, _FILLERS)}"
        else:
            body = body[: max(floor, body.rfind(" "))]
    return best


def synthetic(
    rng: np.random.Generator, *, number: int, tokens: Tokens, count: CountTokens
) -> list[PromptLine]:
    """Return ``number`` prompts of ``tokens`` tokens."""
    return [
        PromptLine(prompt=english(rng, tokens=tokens, count=count, head=reference(rng)))
        for _ in range(number)
    ]


def read_prompts(path: str) -> list[PromptLine]:
    """Read a JSON-lines file: ``prompt`` or ``messages``, maybe ``max_tokens``, on each line.

    Raises UsageError naming the line.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"--prompts {path}: {error.strerror}") from error
    prompts: list[PromptLine] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = msgspec.json.decode(line, type=PromptLine)
        except msgspec.DecodeError as error:
            raise UsageError(f"--prompts {path}, line {number}: {error}") from error
        if (prompt.prompt is None) == (prompt.messages is None):
            raise UsageError(f'--prompts {path}, line {number}: wants "prompt" or "messages"')
        prompts.append(prompt)
    if not prompts:
        raise UsageError(f"--prompts {path}: no prompt in it")
    return prompts
