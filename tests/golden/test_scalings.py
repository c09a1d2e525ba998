"""Scaling decisions do not change unless somebody means it. See scalings.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from scalings import DIRECTORY, SCENARIOS, trace_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.testing.scaled_pool import ScaledPool


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_decisions_are_those_that_were_agreed(scenario: Callable[[], ScaledPool]):
    path = DIRECTORY / f"{scenario.__name__}.json"
    assert trace_of(scenario) == json.loads(path.read_text()), (
        "if this change is meant, run: python tests/golden/scalings.py"
    )


def test_no_agreed_story_is_without_its_scenario():
    names = {f"{scenario.__name__}.json" for scenario in SCENARIOS}
    assert {path.name for path in DIRECTORY.iterdir()} == names
