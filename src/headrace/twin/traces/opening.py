"""open_trace: from what ``--trace`` names to a Trace."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import UsageError
from headrace.twin.traces.arrivals import Arrival, Trace
from headrace.twin.traces.azure import read_azure
from headrace.twin.traces.generated import PREFIX, generate
from headrace.twin.traces.lines import Spot, lines_of
from headrace.twin.traces.mooncake import read_mooncake
from headrace.twin.traces.terms import pairs_of, terms_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_trace(name: str, *, seed: int, limit: int | None = None) -> Trace:
    """Return the first ``limit`` requests of a file or of a ``gen:`` workload.

    Behind a file's name may come ``?`` and the terms of its requests (terms.py).
    Raises UsageError for a file that is missing, empty, unsorted or of another format.
    """
    if name.startswith(PREFIX):
        trace = generate(name, seed)
        return trace if limit is None else Trace(name=name, arrivals=trace.arrivals[:limit])
    path, _, query = name.partition("?")
    terms = terms_of(pairs_of(query, name), name)
    spot = Spot(Path(path))
    arrivals: list[Arrival] = []
    for arrival in _read(spot):
        if arrivals and arrival.at < arrivals[-1].at:
            behind = arrivals[-1].at - arrival.at
            spot.fail(f"{behind:g} s earlier than the line before: sort the file by time")
        if limit is not None and len(arrivals) >= limit:
            break
        arrivals.append(arrival._replace(terms=terms))
    if not arrivals:
        raise UsageError(f"{name}: no requests in this trace")
    return Trace(name=Path(name).name, arrivals=tuple(arrivals))


def _read(spot: Spot) -> Iterator[Arrival]:
    """Read by what the first line looks like."""
    lines = lines_of(spot)
    first = next(lines, "").removeprefix("\ufeff")
    whole = chain([first], lines)
    if first.lstrip().startswith("{"):
        return read_mooncake(whole, spot)
    if "," in first:
        return read_azure(whole, spot)
    if not first and next(lines, None) is None:
        raise UsageError(f"{spot.path}: the file is empty")
    spot.fail("neither Azure's columns nor a JSON object of Mooncake's: no format that is known")
