"""Azure's LLM inference traces of 2023 and 2024: CSV with TIMESTAMP, ContextTokens,
GeneratedTokens. They tell lengths only, so no two prompts have anything in common.

https://github.com/Azure/AzurePublicDataset (CC-BY-4.0; Patel et al., "Splitwise", ISCA 2024).
"""

from __future__ import annotations

import csv
from datetime import datetime
from typing import TYPE_CHECKING

from headrace.twin.texts import Piece
from headrace.twin.traces.arrivals import Arrival

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.twin.traces.lines import Spot

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
PROMPT_KEYS = 1 << 48
"""Keys of prompts begin here, those of answers at 0."""


def read_azure(lines: Iterator[str], spot: Spot) -> Iterator[Arrival]:
    """Yield the arrivals. Raises UsageError with the line that is wrong."""
    rows = csv.reader(lines)
    header = next(rows, [])
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        spot.fail(f"no column {', '.join(missing)}; expected are {', '.join(COLUMNS)}")
    time, context, generated = (header.index(name) for name in COLUMNS)
    first: datetime | None = None
    for index, row in enumerate(row for row in rows if row):
        if len(row) != len(header):
            spot.fail(f"{len(row)} columns; the first line names {len(header)}")
        now = _time(row[time], spot)
        first = first or now
        if (now.tzinfo is None) != (first.tzinfo is None):
            spot.fail("TIMESTAMP has a time zone, or has none, unlike the lines before")
        length = spot.whole_number("ContextTokens", row[context], least=1)
        yield Arrival(
            at=(now - first).total_seconds(),
            prompt=(Piece(PROMPT_KEYS + index, 0, length),),
            max_tokens=spot.whole_number("GeneratedTokens", row[generated], least=1),
            seed=index,
        )


def _time(text: str, spot: Spot) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        spot.fail(f"TIMESTAMP is {text!r}; it must be like 2023-11-16 18:15:46.6805900")
