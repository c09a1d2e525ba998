"""Policies do not change unless somebody means it. See placements.py for how to write them anew."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from placements import DIRECTORY, SCENARIOS, path_of, trace_of

from headrace.core.balancer.registry import POLICIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from placements import Play


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_routes_are_those_that_were_agreed(scenario: Callable[[Play], None], policy: str):
    agreed = json.loads(path_of(scenario, policy).read_text())
    assert trace_of(scenario, policy) == agreed, (
        "if this change is meant, run: python tests/golden/placements.py"
    )


def test_no_agreed_route_is_without_its_scenario():
    names = {path_of(scenario, policy).name for scenario in SCENARIOS for policy in POLICIES}
    assert {path.name for path in DIRECTORY.iterdir()} == names
