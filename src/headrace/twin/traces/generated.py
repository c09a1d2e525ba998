"""Workloads that are generated: ``gen:KIND?name=value&...``.

    gen:poisson         independent requests
    gen:shared-prefix   each prompt begins with one of ``groups`` texts of ``prefix`` tokens
    gen:sessions        conversations: every turn sends all turns before it again

Arrivals (of sessions: their first turns) are a Poisson process. Lengths are
uniform between half and one and a half of what is asked. Later turns of a session come ``think``
seconds apart, whether or not the answer before has ended. All requests of a workload have its
``class``, ``tenant``, ``weight``, ``ttft_ms``, ``itl_ms`` and ``deadline_ms`` (terms.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import UsageError
from headrace.twin.names import look_up
from headrace.twin.texts import Piece
from headrace.twin.traces.arrivals import Arrival, Trace
from headrace.twin.traces.terms import NAMES, pairs_of, terms_of

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "gen:"
PROMPT_KEYS = 1 << 48
PREFIX_KEYS = 1 << 49


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The values of a query. Lengths are means, in tokens."""

    rate: float = 4.0  # a second
    requests: int = 500  # turns of sessions included
    prompt: int = 512  # of its own, without a prefix or earlier turns
    output: int = 128
    prefix: int = 2048
    groups: int = 16
    turns: int = 4
    think: float = 10.0  # seconds


def generate(text: str, seed: int) -> Trace:
    """Return the workload that ``gen:...`` describes. Raises UsageError."""
    kind, _, query = text.removeprefix(PREFIX).partition("?")
    make = look_up("workload", kind, _KINDS)
    pairs = pairs_of(query, text)
    terms = terms_of((pair for pair in pairs if pair[0] in NAMES), text)
    shape = _shape_of([pair for pair in pairs if pair[0] not in NAMES], text)
    arrivals = make(shape, np.random.default_rng(seed))
    arrivals = [arrival._replace(terms=terms) for arrival in arrivals]
    arrivals.sort(key=lambda arrival: (arrival.at, arrival.seed))
    return Trace(name=text, arrivals=tuple(arrivals[: shape.requests]))


def _shape_of(pairs: list[tuple[str, str]], text: str) -> Shape:
    known = {field.name: field.type for field in fields(Shape)}
    values: dict[str, float] = {}
    for name, value in pairs:
        kind = look_up("value of a workload", name, known)
        try:
            number = int(value) if kind == "int" else float(value)
        except ValueError:
            number = 0
        if not 0 < number < 1e9:
            raise UsageError(f"{text}: {name} is {value!r}; it must be a number over 0")
        values[name.lower()] = number
    return Shape(**values)  # type: ignore[arg-type]  # int() where the field is one


def _poisson(shape: Shape, rng: np.random.Generator) -> list[Arrival]:
    count = shape.requests
    return [
        Arrival(at, (Piece(PROMPT_KEYS + i, 0, prompt),), output, i)
        for i, (at, prompt, output) in enumerate(
            zip(
                _times(shape.rate, count, rng),
                _lengths(shape.prompt, count, rng),
                _lengths(shape.output, count, rng),
                strict=True,
            )
        )
    ]


def _shared_prefix(shape: Shape, rng: np.random.Generator) -> list[Arrival]:
    groups = rng.integers(0, shape.groups, shape.requests).tolist()
    return [
        arrival._replace(prompt=(Piece(PREFIX_KEYS + group, 0, shape.prefix), *arrival.prompt))
        for arrival, group in zip(_poisson(shape, rng), groups, strict=True)
    ]


def _sessions(shape: Shape, rng: np.random.Generator) -> list[Arrival]:
    arrivals: list[Arrival] = []
    num_sessions = -(-shape.requests // shape.turns)
    for begin in _times(shape.rate, num_sessions, rng):
        pieces: tuple[Piece, ...] = ()
        prompts = _lengths(shape.prompt, shape.turns, rng)
        outputs = _lengths(shape.output, shape.turns, rng)
        for turn, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            seed = len(arrivals)
            pieces = (*pieces, Piece(PROMPT_KEYS + seed, 0, prompt))
            at = begin + turn * shape.think
            arrivals.append(Arrival(at, pieces, output, seed))
            answered = sum(piece.length for piece in pieces)
            pieces = (*pieces, Piece(seed, answered, output))  # what the model will have said
    return arrivals


_KINDS: dict[str, Callable[[Shape, np.random.Generator], list[Arrival]]] = {
    "poisson": _poisson,
    "shared-prefix": _shared_prefix,
    "sessions": _sessions,
}


def _times(rate: float, count: int, rng: np.random.Generator) -> list[float]:
    times: list[float] = np.cumsum(rng.exponential(1 / rate, count)).tolist()
    return times


def _lengths(mean: int, count: int, rng: np.random.Generator) -> list[int]:
    low = max(1, mean // 2)
    lengths: list[int] = rng.integers(low, mean + mean - low + 1, count).tolist()
    return lengths
