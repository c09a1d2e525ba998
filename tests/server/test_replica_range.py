"""FLOOR:CEILING."""

from __future__ import annotations

import pytest

from headrace.errors import UsageError
from headrace.server.replica_range import ReplicaRange, parse_range


@pytest.mark.parametrize(
    ("text", "floor", "ceiling"), [("2", 2, 2), ("1:3", 1, 3), ("64", 64, 64), ("1:1", 1, 1)]
)
def test_ranges(text: str, floor: int, ceiling: int):
    found = parse_range(text, place="--replicas")
    assert found == ReplicaRange(floor, ceiling)
    assert parse_range(str(found), place="again") == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write a number, or FLOOR:CEILING as in 1:3"),
        ("a", "write a number"),
        ("1:2:3", "write a number"),
        ("-1", "write a number"),
        ("\u0661", "write a number"),
        ("3:1", "the floor 3 is above the ceiling 1"),
        ("0", "at least one replica must stay; scale to zero comes later"),
        ("0:0", "at least one replica"),
        ("0:3", "scale to zero comes later"),
        ("1:65", "there may be 1 to 64 replicas"),
        ("999999999", "there may be 1 to 64 replicas"),
    ],
)
def test_what_is_no_range_is_explained(text: str, words: str):
    with pytest.raises(UsageError) as error:
        parse_range(text, place="--replicas")
    assert str(error.value).startswith(f"--replicas is {text!r}: ")
    assert words in str(error.value)
