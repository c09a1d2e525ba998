"""docs/faults.md names tests and settings: they must be there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "faults.md").read_text()
NAMED = sorted(set(re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", PAGE)))


def test_it_names_tests():
    assert len(NAMED) > 30


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_that_it_names_is_there(path: str, name: str):
    text = (ROOT / "tests" / path).read_text()
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{path} has no {name}"


def test_faults_that_it_names_are_played():
    injections = (ROOT / "benchmarks" / "faults" / "injections.py").read_text()
    for names in re.findall(r"`faults/run\.py` \(([^)]*)\)", PAGE):
        for name in re.findall(r"F\d+[a-z]?", names):
            assert f'name="{name}"' in injections
