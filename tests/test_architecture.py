"""The architecture checks themselves: each rule catches what breaks it, and our code passes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("architecture", ROOT / "scripts" / "architecture.py")
assert SPEC is not None
assert SPEC.loader is not None
architecture = importlib.util.module_from_spec(SPEC)
sys.modules["architecture"] = architecture
SPEC.loader.exec_module(architecture)


def findings(tmp_path: Path, place: str, source: str) -> list[str]:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return [finding.text for finding in architecture.check_package(tmp_path)]


def test_our_package_breaks_no_rule():
    assert [str(f) for f in architecture.check_package(ROOT / "src" / "headrace")] == []


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "from time import monotonic",
        "import os.path",
        "from headrace.server import driver",
        "import msgspec",
        "def f():\n    import random",
    ],
)
def test_the_core_may_not_import_what_performs(tmp_path: Path, source: str):
    assert findings(tmp_path, "core/bad.py", source)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("server/x.py", "import time"),
        ("server/x.py", "import os\nprint(os.environ['HOME'])"),
        ("cli/x.py", "import openvino"),
        ("executor/simulated.py", "import random"),
    ],
)
def test_the_outside_world_is_touched_in_one_room_each(tmp_path: Path, place: str, source: str):
    assert findings(tmp_path, place, source)


def test_what_is_allowed_is_allowed(tmp_path: Path):
    assert findings(tmp_path, "clock.py", "import time") == []
    assert findings(tmp_path, "config.py", "import os\nprint(os.environ)") == []
    assert findings(tmp_path, "core/good.py", "import hashlib\nfrom headrace.types import X") == []


def test_a_long_function_is_found_but_its_docstring_does_not_count(tmp_path: Path):
    long = "def f():\n" + "    x = 1\n" * 60
    assert findings(tmp_path, "a.py", long) == ["f has 61 lines > 60"]
    documented = 'def f():\n    """' + "words\n" * 60 + '    """\n    x = 1\n'
    assert findings(tmp_path, "a.py", documented) == []


def test_deep_nesting_is_found_and_elif_is_not_nesting(tmp_path: Path):
    deep = "def f(a):\n for b in a:\n  if b:\n   while b:\n    if a:\n     pass\n"
    assert findings(tmp_path, "a.py", deep) == ["f nests 4 deep > 3"]
    chain = "def f(a):\n if a == 1: pass\n" + "".join(f" elif a == {i}: pass\n" for i in range(9))
    assert findings(tmp_path, "a.py", chain) == []


def test_a_class_with_too_much_in_it_is_found(tmp_path: Path):
    methods = "class A:\n" + "".join(f"    def m{i}(self): pass\n" for i in range(13))
    assert findings(tmp_path, "a.py", methods) == ["A has 13 public methods > 12"]
    fields = "class A:\n  def __init__(self):\n" + "".join(
        f"    self.a{i} = 1\n" for i in range(11)
    )
    assert findings(tmp_path, "a.py", fields) == ["A has 11 attributes > 10"]


def test_a_long_module_needs_a_reason_in_its_docstring(tmp_path: Path):
    assert findings(tmp_path, "a.py", "x = 1\n" * 401)
    assert findings(tmp_path, "a.py", '"""Long because of a table."""\n' + "x = 1\n" * 401) == []
