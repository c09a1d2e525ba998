"""Arrival: one request of a trace; Trace: all of them, in order of time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from headrace.twin.texts import Piece
    from headrace.types import Seconds, Tokens


class Arrival(NamedTuple):
    """A request, ``at`` seconds after the trace begins. Its tokens are made when it arrives.

    ``seed`` is the key of its answer's text.
    """

    at: Seconds
    prompt: tuple[Piece, ...]
    max_tokens: Tokens
    seed: int

    @property
    def prompt_tokens(self) -> Tokens:
        """Length of the prompt."""
        return sum(piece.length for piece in self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Arrivals, sorted; at least one."""

    name: str
    arrivals: tuple[Arrival, ...]

    @property
    def seconds(self) -> Seconds:
        """From the first arrival to the last."""
        return self.arrivals[-1].at - self.arrivals[0].at

    def faster(self, factor: float) -> Trace:
        """Return the same requests at ``factor`` times the rate."""
        arrivals = tuple(a._replace(at=a.at / factor) for a in self.arrivals)
        return replace(self, arrivals=arrivals)

    def spread(self, seconds: Seconds, seed: int) -> Trace:
        """Put each request off by up to ``seconds``, at random: for clocks that tick coarsely."""
        later = np.random.default_rng(seed).uniform(0, seconds, len(self.arrivals)).tolist()
        pairs = zip(self.arrivals, later, strict=True)
        moved = [arrival._replace(at=arrival.at + delay) for arrival, delay in pairs]
        return replace(self, arrivals=tuple(sorted(moved, key=_time)))


def _time(arrival: Arrival) -> Seconds:
    return arrival.at
