"""What the build writes into the source that it compiles, beside what Python makes of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from hatch_build import WRITTEN, hot_modules, prepare, write_constructors  # noqa: E402

PACKAGE = ROOT / "src" / "headrace"
MODULES = [*hot_modules(PACKAGE), *(PACKAGE / name for name in WRITTEN)]
SOURCE = '''
from dataclasses import dataclass, field

@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point."""
    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list)

@dataclass(slots=True)
class Bag:
    name: str
    items: list[int] = field(default_factory=list)

    def total(self) -> int:
        return sum(self.items)

@dataclass(frozen=True, slots=True)
class Pair:
    left: int
    right: int = 7

@dataclass(frozen=True, eq=False)
class Token:
    items: list[int]

@dataclass
class Odd:
    tags: list[str] = field(default_factory=list, hash=False)

@dataclass
class Checked:
    low: int
    def __post_init__(self) -> None:
        self.low += 1
'''


def constructors(text: str) -> dict[str, tuple[list[str], list[str]]]:
    """Return the arguments of each constructor that was written: all, and those given by name."""
    found = {}
    for node in ast.parse(text).body:
        marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", ())]
        if isinstance(node, ast.ClassDef) and any("init=False" in mark for mark in marks):
            (made,) = (each for each in node.body if getattr(each, "name", "") == "__init__")
            assert isinstance(made, ast.FunctionDef)
            named = [each.arg for each in made.args.kwonlyargs]
            found[node.name] = ([each.arg for each in made.args.args[1:]] + named, named)
    return found


def run(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": __name__}
    exec(text, names)
    return names


def test_a_written_constructor_takes_what_that_of_the_dataclass_takes():
    num_written = 0
    for path in MODULES:
        name = ".".join(("headrace", *path.relative_to(PACKAGE).with_suffix("").parts))
        module = importlib.import_module(name.removesuffix(".__init__"))
        for cls, arguments in constructors(prepare(path.read_text())).items():
            wanted = inspect.signature(getattr(module, cls)).parameters
            named = [each.name for each in wanted.values() if each.kind is each.KEYWORD_ONLY]
            assert arguments == ([*wanted], named), cls
            num_written += 1
    assert num_written > 50


def test_objects_are_the_same_but_for_being_frozen():
    plain, written = run(SOURCE), run(write_constructors(SOURCE))
    for names in (plain, written):
        bags = names["Bag"]("a"), names["Bag"]("b")
        bags[0].items.append(3)
        assert (bags[0].total(), bags[1].items) == (3, [])
        assert names["Point"](x=1) == names["Point"](x=1, y=2)
        with pytest.raises(TypeError):
            names["Point"](1)
        pair = names["Pair"](1)
        assert (pair, hash(pair)) == (names["Pair"](1, 7), hash(names["Pair"](1, 7)))
        assert names["Checked"](1).low == 2
        token = names["Token"]([1])
        assert (token != names["Token"]([1]), hash(token)) == (True, object.__hash__(token))
    assert repr(plain["Pair"](1)) == repr(written["Pair"](1))


def test_what_is_more_than_fields_is_left_as_it_is():
    assert set(constructors(write_constructors(SOURCE))) == {"Point", "Bag", "Pair", "Token"}
