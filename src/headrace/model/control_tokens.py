"""Control tokens in text: where a template wrote them, and not where a user did.

The names of control tokens (``<|im_end|>``, ``</s>``) are ordinary characters until somebody
takes them for tokens. In a rendered chat the template's own are wanted and a user's are not, so
text from outside goes through ``shield`` before it is rendered: a noncharacter behind the first
letter of each name keeps it from being recognised, and ``split`` takes it out again. Templates
may trim, join and quote shielded text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.types import TokenId

_SHIELD = "\ufdd0"  # Unicode reserves it for use inside a program; doubled, it stands for itself
_UNSHIELD = re.compile(f"{_SHIELD}({_SHIELD}?)")


class ControlTokens:
    """The control tokens of one model, by name. No name is shorter than two characters."""

    def __init__(self, ids: Mapping[str, TokenId]) -> None:
        longest_first = sorted(ids, key=len, reverse=True)
        names = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._ids = ids
        self._name = re.compile(names)
        self._first_letter = re.compile(f"(?={names})(.)", re.DOTALL)

    def shield(self, text: str) -> str:
        """Return text in which ``split`` finds no control token, but this text."""
        text = escape(text)
        if self._name.search(text) is None:
            return text
        return self._first_letter.sub(rf"\1{_SHIELD}", text)

    def split(self, text: str) -> Iterator[str | TokenId]:
        """Yield the control tokens that a text names, and the text between them, unshielded."""
        start = 0
        for name in self._name.finditer(text):
            yield _unescape(text[start : name.start()])
            yield self._ids[name.group()]
            start = name.end()
        yield _unescape(text[start:])


def escape(text: str) -> str:
    """Return what ``split`` turns back into this text, control tokens recognised."""
    return text.replace(_SHIELD, _SHIELD * 2)


def _unescape(text: str) -> str:
    return _UNSHIELD.sub(r"\1", text)
