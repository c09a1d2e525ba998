"""Mooncake's traces: JSON lines with timestamp (ms), input_length, output_length and hash_ids.

Each of ``hash_ids`` names a block of 512 prompt tokens, the last one perhaps in part: requests
that begin with the same ids begin with the same tokens. Answers are never part of later prompts.

https://github.com/kvcache-ai/Mooncake (Apache-2.0; Qin et al., "Mooncake", FAST 2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from headrace.twin.texts import Piece
from headrace.twin.traces.arrivals import Arrival

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.twin.traces.lines import Spot

BLOCK_TOKENS = 512
PROMPT_KEYS = 1 << 48
FIELDS = "timestamp (ms), input_length, output_length, hash_ids"


class _Line(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_mooncake(lines: Iterator[str], spot: Spot) -> Iterator[Arrival]:
    """Yield the arrivals. Raises UsageError with the line that is wrong."""
    decoder = msgspec.json.Decoder(_Line)
    first: float | None = None
    for index, text in enumerate(line for line in lines if line.strip()):
        try:
            line = decoder.decode(text)
        except msgspec.DecodeError as error:
            spot.fail(f"{error}; expected is a JSON object with {FIELDS}")
        first = line.timestamp if first is None else first
        yield Arrival(
            at=(line.timestamp - first) / 1000,
            prompt=_pieces(line, spot),
            max_tokens=spot.whole_number("output_length", line.output_length, least=1),
            seed=index,
        )


def _pieces(line: _Line, spot: Spot) -> tuple[Piece, ...]:
    length = spot.whole_number("input_length", line.input_length, least=1)
    needed = -(-length // BLOCK_TOKENS)
    if len(line.hash_ids) != needed:
        spot.fail(
            f"hash_ids has {len(line.hash_ids)} entries; {length} tokens are {needed} blocks "
            f"of {BLOCK_TOKENS}"
        )
    pieces = [Piece(PROMPT_KEYS + block, 0, BLOCK_TOKENS) for block in line.hash_ids]
    last = length - (needed - 1) * BLOCK_TOKENS
    pieces[-1] = pieces[-1]._replace(length=last)
    return tuple(pieces)
