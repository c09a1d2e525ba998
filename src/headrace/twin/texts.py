"""Tokens of prompts and answers: functions of a key and a position, so that nobody stores them.

Two pieces with different keys share a token here and there, but (but for chance, one in
``vocab_size`` squared) no run of them: what was meant to be different is different for a prefix
cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.types import TokenId, Tokens

_MASK = 0xFFFFFFFFFFFFFFFF


class Piece(NamedTuple):
    """``length`` tokens of the text ``key``, from position ``start`` of it."""

    key: int
    start: Tokens
    length: Tokens


class Text(NamedTuple):
    """The token at position p is ``(first + p * step) % vocab_size``."""

    first: int
    step: int
    vocab_size: int

    def token(self, position: Tokens) -> TokenId:
        """Return the token at a position."""
        return (self.first + position * self.step) % self.vocab_size

    def tokens(self, start: Tokens, length: Tokens) -> list[TokenId]:
        """Return ``length`` tokens from position ``start``."""
        positions = np.arange(start, start + length, dtype=np.int64)
        tokens: list[int] = ((positions * self.step + self.first) % self.vocab_size).tolist()
        return tokens


def text_of(key: int, vocab_size: int) -> Text:
    """Return the text of a key."""
    mixed = mix(key)
    return Text(mixed % vocab_size, 1 + (mixed >> 32) % (vocab_size - 1), vocab_size)


def prompt_of(pieces: Iterable[Piece], vocab_size: int) -> tuple[TokenId, ...]:
    """Return the tokens of a prompt."""
    tokens: list[TokenId] = []
    for key, start, length in pieces:
        tokens += text_of(key, vocab_size).tokens(start, length)
    return tuple(tokens)


def mix(value: int) -> int:
    """Scramble 64 bits (the finaliser of splitmix64, Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
