"""What is remembered of cached content: who used it last, how often, and how deep it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace.types import Seconds, Tokens

_MAX_TURN = 4
_SMALL = 128  # tokens: prompts below double this are of one size
_MAX_SIZE = 8
_MAX_REUSE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose a table is. ``retention``: how long its first blocks are worth keeping, in seconds.

    ``num_prompt_blocks`` says how many those are.
    """

    tenant: str = "default"
    session: str = ""
    retention: Seconds | None = None
    num_prompt_blocks: int = 0


NOBODY = Owner()


class Kind(NamedTuple):
    """Content that comes back alike. ``family``: kinds whose ages are compared to each other.

    Content of one conversation differs by its turn and by its prompt's size, content that
    several share by how often it was used.
    """

    family: int
    turn: int
    size: int


_ONE_SHOT, _SESSION, _SHARED = 0, 1, 2


def _log2(number: int, limit: int) -> int:
    """Return the whole part of the logarithm of a number, 0 for 0, at most ``limit``."""
    return min(max(number.bit_length() - 1, 0), limit)


_SHARED_KINDS = tuple(Kind(_SHARED + reuse, 0, 0) for reuse in range(_MAX_REUSE + 1))


class Visit(NamedTuple):
    """One table's use of blocks. ``turn`` counts from 1 within a conversation.

    ``kind`` is that of content that only this conversation uses.
    """

    number: int
    owner: Owner
    turn: int
    kind: Kind


def visit_of(number: int, owner: Owner, turn: int, num_tokens: Tokens) -> Visit:
    """Return the visit of a table that begins with ``num_tokens``."""
    family = _SESSION if owner.session else _ONE_SHOT
    kind = Kind(family, min(turn, _MAX_TURN), _log2(num_tokens // _SMALL, _MAX_SIZE))
    return Visit(number, owner, turn, kind)


@dataclass(slots=True, eq=False)
class Mark:
    """Of one cached block: its content's name and place in the chain, and its past."""

    digest: bytes
    depth: int
    turn: int  # of the visit that computed it
    visit: Visit  # the last one
    reuse: int = 0
    pinned_until: Seconds = 0.0
    pinned_by: str = ""

    @property
    def kind(self) -> Kind:
        """What it is alike to, as things stand."""
        visit = self.visit
        if self.reuse > visit.turn - self.turn:  # more than one conversation explains
            return _SHARED_KINDS[_log2(1 + self.reuse, _MAX_REUSE)]
        return visit.kind


def alike(marks: Sequence[Mark]) -> Iterator[tuple[int, int]]:
    """Yield where runs of marks of one visit and kind begin and end."""
    start, visit, turn, reuse = 0, None, 0, 0
    for index, mark in enumerate(marks):
        if mark.visit is not visit or mark.turn != turn or mark.reuse != reuse:
            if index:
                yield start, index
            start, visit, turn, reuse = index, mark.visit, mark.turn, mark.reuse
    if marks:
        yield start, len(marks)
