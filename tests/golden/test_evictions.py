"""Victims do not change unless somebody means it. See evictions.py for how to write them anew."""

from __future__ import annotations

import json

import pytest
from evictions import DIRECTORY, trace_of

from headrace.core.kvcache.eviction.config import ORDERS


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_lost_is_what_was_agreed(order: str):
    assert trace_of(order) == json.loads((DIRECTORY / f"{order}.json").read_text()), (
        "if this change is meant, run: python tests/golden/evictions.py"
    )


def test_no_agreed_trace_is_without_its_order():
    assert {path.stem for path in DIRECTORY.iterdir()} == set(ORDERS)
