"""SuffixIndex: where the end of a growing text has occurred before in it, and what came next.

A hash chain as in LZ77 coders (Deutsch, RFC 1951, section 4): the last place of each pair of
tokens, and from each place the one before with the same pair. A look follows the chain of the
text's last pair and compares backwards. Tokens enter once, a bounded number at a time; memory is
about a hundred bytes a token. It knows no models and no chances.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.types import TokenId, Tokens

MIN_MATCH = 2
MAX_MATCH = 32
"""Tokens compared: a longer match says nothing more."""

MAX_CANDIDATES = 12
"""Places looked at, the last ones first."""

_NOWHERE = -1


class Match(NamedTuple):
    """The ``length`` tokens before position ``next`` are the last tokens of the text."""

    next: Tokens
    length: Tokens


class SuffixIndex:
    """Of ``tokens``, a list that others append to and nobody changes otherwise."""

    def __init__(self, tokens: list[TokenId]) -> None:
        self._tokens = tokens
        self._last: dict[int, Tokens] = {}  # pair -> position behind its last place
        self._before = array("i", (_NOWHERE, _NOWHERE))  # position -> one with the same pair

    @property
    def num_missing(self) -> Tokens:
        """Tokens that did not enter yet."""
        return len(self._tokens) + 1 - max(len(self._before), MIN_MATCH)

    def enter(self, limit: Tokens) -> Tokens:
        """Let at most ``limit`` tokens enter; return how many did."""
        tokens, last, before = self._tokens, self._last, self._before
        first = len(before)
        end = min(len(tokens) + 1, first + limit)
        for position in range(first, end):
            pair = tokens[position - 2] << 32 | tokens[position - 1]
            before.append(last.get(pair, _NOWHERE))
            last[pair] = position
        return max(end - first, 0)

    def longest(self) -> Match | None:
        """Return the longest match of the text's end, the latest of equals; None without one.

        Of the places where a match may be, the last MAX_CANDIDATES are compared.
        """
        tokens, before = self._tokens, self._before
        size = len(tokens)
        if size < MIN_MATCH:
            return None
        position = self._last.get(tokens[-2] << 32 | tokens[-1], _NOWHERE)
        if position == size:  # the end itself
            position = before[position]
        place, best = _NOWHERE, 0
        for _ in range(MAX_CANDIDATES):
            if position == _NOWHERE or best == MAX_MATCH:
                break
            length = self._common(position)
            if length > best:
                place, best = position, length
            position = before[position]
        return Match(place, best) if best else None

    def continuation(self, match: Match, count: int) -> tuple[TokenId, ...]:
        """Return the ``count`` tokens that followed ``match``, over and over where it is so near
        to the end that they are fewer."""
        start = match.next
        found = self._tokens[start : start + count]
        period = len(found)
        return tuple(found[i % period] for i in range(count)) if period < count else tuple(found)

    def _common(self, position: Tokens) -> Tokens:
        """Return how many tokens before ``position`` are the last of the text."""
        tokens, size = self._tokens, len(self._tokens)
        limit = min(position, MAX_MATCH)
        length = MIN_MATCH
        while length < limit and tokens[position - 1 - length] == tokens[size - 1 - length]:
            length += 1
        return length
