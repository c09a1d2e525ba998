"""Schedules do not change unless somebody means it. See schedules.py for how to write them anew."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from schedules import DIRECTORY, SCENARIOS, trace_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.testing.harness import EngineHarness


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_schedule_is_the_one_that_was_agreed(scenario: Callable[[], EngineHarness]):
    path = DIRECTORY / f"{scenario.__name__}.json"
    assert trace_of(scenario) == json.loads(path.read_text()), (
        "if this change is meant, run: python tests/golden/schedules.py"
    )


def test_no_agreed_schedule_is_without_its_scenario():
    names = {f"{scenario.__name__}.json" for scenario in SCENARIOS}
    assert {path.name for path in DIRECTORY.iterdir()} == names
