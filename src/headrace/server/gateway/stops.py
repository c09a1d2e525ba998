"""Stop strings: found across token borders, never shown in part.

Which stop string ends a text, and where, is defined on characters: the first one to be complete;
among those complete at the same character the longest. So the text before the stop does not
depend on how tokens cut it up. Source of the matching: Knuth, Morris, Pratt 1977.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Released(NamedTuple):
    """Text that may be shown, and whether a stop string ended it."""

    text: str
    stopped: bool


class StopMatcher:
    """Takes the text of one generation piece by piece; cost per character O(stop strings)."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [_Pattern(stop) for stop in stops]
        self._first_chars = frozenset(stop[0] for stop in stops)
        self._held = ""

    @property
    def held(self) -> str:
        """Text held back, because a stop string may begin in it."""
        return self._held

    def push(self, text: str) -> Released:
        """Add text; return what is certain now. After a stop nothing more may be pushed."""
        if not self._held and self._first_chars.isdisjoint(text):
            return Released(text, stopped=False)
        window = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            longest = 0
            for pattern in self._patterns:
                if pattern.advance(char):
                    longest = max(longest, pattern.length)
            if longest:
                self._held = ""
                return Released(window[: end - longest], stopped=True)
        keep = len(window) - max(pattern.matched for pattern in self._patterns)
        self._held = window[keep:]
        return Released(window[:keep], stopped=False)

    def flush(self) -> str:
        """End the text: what was held back is only text."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """One stop string, and how much of it the text so far ends with."""

    __slots__ = ("_fallback", "_stop", "length", "matched")

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._fallback = _borders(stop)
        self.length = len(stop)
        self.matched = 0

    def advance(self, char: str) -> bool:
        """Take one character; return whether the stop string is complete."""
        matched = self.matched
        while matched and self._stop[matched] != char:
            matched = self._fallback[matched - 1]
        if self._stop[matched] == char:
            matched += 1
        self.matched = matched
        return matched == self.length


def _borders(stop: str) -> list[int]:
    """Return for each prefix the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        if stop[index] == stop[length]:
            length += 1
        borders[index] = length
    return borders
