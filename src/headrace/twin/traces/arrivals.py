"""Arrival: one request of a trace; Trace: all of them, in order of time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headrace.twin.traces.terms import PLAIN, Terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.twin.texts import Piece
    from headrace.types import Seconds, Tokens

_NUMBER_SHIFT = 52
"""Above the keys that one trace uses."""


class Arrival(NamedTuple):
    """A request, ``at`` seconds after the trace begins. Its tokens are made when it arrives.

    ``seed`` is the key of its answer's text; ``terms`` say whose it is and what it asks for,
    ``session`` names its conversation ("": nobody said).
    """

    at: Seconds
    prompt: tuple[Piece, ...]
    max_tokens: Tokens
    seed: int
    terms: Terms = PLAIN
    session: str = ""

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


def merged(traces: Sequence[Trace]) -> Trace:
    """Return several traces at once, as one. Their texts have nothing in common."""
    if len(traces) == 1:
        return traces[0]
    arrivals = [
        _renumbered(arrival, number << _NUMBER_SHIFT)
        for number, trace in enumerate(traces)
        for arrival in trace.arrivals
    ]
    arrivals.sort(key=_time)
    return Trace(name=" + ".join(trace.name for trace in traces), arrivals=tuple(arrivals))


def _renumbered(arrival: Arrival, shift: int) -> Arrival:
    prompt = tuple(piece._replace(key=piece.key + shift) for piece in arrival.prompt)
    return arrival._replace(prompt=prompt, seed=arrival.seed + shift)


def _time(arrival: Arrival) -> Seconds:
    return arrival.at
