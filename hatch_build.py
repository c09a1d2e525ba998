"""Build hook: with HEADRACE_COMPILE=1 the hot path is compiled (mypyc), else all stays Python.

The compiled modules are the same source: what every request and every step goes through, listed in
COMPILED. They are two to four times as fast. Modules that define msgspec Structs stay Python, since
msgspec reads annotations that a compiled class does not keep.

mypyc wants to see the names in the annotations of dataclasses and named tuples when it runs, of
which many are imported for type checkers only: `prepare` imports them, or says Any where that
would be a circle. What @dataclass writes when it runs stays interpreted, so `prepare` also writes
the constructors that it would write.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WANTED = os.environ.get("HEADRACE_COMPILE", "") not in ("", "0")
MYPY = "mypy>=2.4,<2.5"

COMPILED = (
    "clock.py",
    "machine.py",
    "core/health.py",
    "core/balancer/*.py",
    "core/costs/*.py",
    "core/kvcache/*.py",
    "core/kvcache/eviction/*.py",
    "core/router/*.py",
    "core/scheduler/*.py",
    "model/detokenizer.py",
    "monitoring/journal.py",
    "monitoring/metrics.py",
    "monitoring/records.py",
    "monitoring/windows.py",
    "server/driver.py",
    "server/engine.py",
    "server/keys.py",
    "server/links.py",
    "server/gateway/answers.py",
    "server/gateway/book.py",
    "server/gateway/choice.py",
    "server/gateway/completions.py",
    "server/gateway/decisions.py",
    "server/gateway/figures.py",
    "server/gateway/front.py",
    "server/gateway/generation.py",
    "server/gateway/generations.py",
    "server/gateway/keeping.py",
    "server/gateway/model.py",
    "server/gateway/planning.py",
    "server/gateway/prompting.py",
    "server/gateway/replicas.py",
    "server/gateway/routes.py",
    "server/gateway/stops.py",
    "server/gateway/traffic.py",
    "server/gateway/urgency.py",
    "server/gateway/foreign/answers.py",
    "server/gateway/foreign/attempt.py",
    "server/gateway/foreign/endpoints.py",
    "server/gateway/foreign/link.py",
    "server/gateway/foreign/naming.py",
    "server/gateway/foreign/passage.py",
    "server/gateway/foreign/pools.py",
    "server/gateway/foreign/reading.py",
    "server/gateway/foreign/upstream.py",
    "server/gateway/http/*.py",
    "server/transport/*.py",
)

SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup

modules, sys.argv[1:] = sys.argv[1:], ["build_ext", "--inplace"]
flags = ["--config-file", "mypy.ini"]
extensions = mypycify([*flags, *modules], opt_level="3", debug_level="0", multi_file=True)
setup(name="compiled", packages=[], ext_modules=extensions)
"""
"""Compiles to one library, from a C file for each module: one for all is too much for compilers."""

WRITTEN = ("types.py",)
"""Stay Python, with written constructors: a Request takes 0.4 us to make instead of 1.6."""

SAFE_IMPORTS = ("collections.abc", "headrace.types")
"""Import nothing that imports its importer."""


class CompileHook(BuildHookInterface[Any]):
    """See the module."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what the build needs beyond hatchling."""
        return [MYPY, "setuptools>=77", *self._runtime()] if WANTED else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add what came of it to the wheel."""
        if not WANTED or version == "editable":
            return
        work = Path(self.directory) / "compiled"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(Path(self.root) / "src", work, ignore=shutil.ignore_patterns("*.pyc"))
        modules = [path.relative_to(work) for path in hot_modules(work / "headrace")]
        written = [Path("headrace") / name for name in WRITTEN]
        for module in (*modules, *written):
            path = work / module
            path.write_text(prepare(path.read_text()))
        (work / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\n")
        places = os.pathsep.join([str(work), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-c", SETUP, *map(str, modules)]
        subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": places}, check=True)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        libraries = [path.relative_to(work) for path in work.rglob("*.so")]
        for path in (*libraries, *written):
            if "build" not in path.parts:
                build_data["force_include"][str(work / path)] = str(path)

    def _runtime(self) -> list[str]:
        return list(self.metadata.core.dependencies)


def hot_modules(package: Path) -> list[Path]:
    """Return the modules to compile."""
    found = sorted({path for pattern in COMPILED for path in package.glob(pattern)})
    return [path for path in found if not _has_structs(path.read_text())]


def prepare(text: str) -> str:
    """Return a module whose class bodies name nothing that is not there when it runs."""
    tree = ast.parse(text)
    guarded = _guarded_imports(tree)
    classes = [each for each in ast.walk(tree) if _is_record(each)]
    fields = [each for one in classes for each in one.body if isinstance(each, ast.AnnAssign)]
    wanted = {name for each in fields for name in _names(each.annotation)} & guarded.keys()
    imports, unknown = list[str](), set[str]()
    for name in sorted(wanted):
        module = guarded[name]
        if module in SAFE_IMPORTS:
            imports.append(f"from {module} import {name}")
        else:
            unknown.add(name)
    if unknown:
        imports.append("from typing import Any")
    lines = text.split("\n")
    for each in sorted(fields, key=lambda field: -field.lineno):
        note = each.annotation
        if unknown & set(_names(note)) and note.lineno == note.end_lineno:
            line = lines[note.lineno - 1]
            lines[note.lineno - 1] = line[: note.col_offset] + "Any" + line[note.end_col_offset :]
    start = next((n.lineno for n in tree.body if _is_guard(n)), None)
    if start is not None:
        lines[start - 1 : start - 1] = imports
    return write_constructors("\n".join(lines))


def write_constructors(text: str) -> str:
    """Return a module in which dataclasses have their constructors in the source.

    Frozen ones are so no longer when it runs: assigning to them is an error to mypy, and keeping
    it one at run time costs a call for each field. Left as they are: classes with a base, with
    __post_init__, or with fields that are more than a name, a type and a default.
    """
    lines = text.split("\n")
    for each in reversed(ast.parse(text).body):
        mark = _dataclass_mark(each)
        if mark is None or not isinstance(each, ast.ClassDef) or not _is_plain(each):
            continue
        options = {str(k.arg): ast.unparse(k.value) for k in getattr(mark, "keywords", ())}
        options["init"] = "False"
        if options.pop("frozen", "False") == "True" and options.get("eq") != "False":
            options["unsafe_hash"] = "True"
        constructor = _constructor(each, kw_only=options.get("kw_only") == "True")
        lines[each.end_lineno : each.end_lineno] = ["", *constructor]
        said = ", ".join(f"{name}={value}" for name, value in options.items())
        lines[mark.lineno - 1 : mark.end_lineno] = [f"@dataclass({said})"]
    return "\n".join(lines)


def _dataclass_mark(node: ast.AST) -> ast.expr | None:
    marks = getattr(node, "decorator_list", ())
    return next((mark for mark in marks if ast.unparse(mark).startswith("dataclass")), None)


def _is_plain(node: ast.ClassDef) -> bool:
    """Whether `_constructor` can do for a dataclass what @dataclass would."""
    names = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    fields = _fields(node)
    if not fields or node.bases or "__post_init__" in names:
        return False
    return all(map(_is_simple, fields))


def _is_simple(field: ast.AnnAssign) -> bool:
    """Whether a field is a name, a type and a default, and nothing else."""
    note = ast.unparse(field.annotation)
    value = ast.unparse(field.value) if field.value else ""
    if note.startswith(("ClassVar", "InitVar")):
        return False
    return not value.startswith("field(") or (bool(_factory(value)) and "None" not in note)


def _factory(value: str) -> str | None:
    """Return what makes a field's default, if that is all that is said of it."""
    found = re.fullmatch(r"field\(default_factory=([\w.]+)\)", value)
    return found and found[1]


def _constructor(node: ast.ClassDef, *, kw_only: bool) -> list[str]:
    arguments, body = ["self", "*"] if kw_only else ["self"], list[str]()
    for each in _fields(node):
        name, note = ast.unparse(each.target), ast.unparse(each.annotation)
        value = "" if each.value is None else ast.unparse(each.value)
        factory = _factory(value)
        given = f"{factory}() if {name} is None else {name}" if factory else name
        default = " | None = None" if factory else f" = {value}" if value else ""
        arguments.append(f"{name}: {note}{default}")
        body.append(f"        self.{name} = {given}")
    return [f"    def __init__({', '.join(arguments)}) -> None:", *body]


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [each for each in node.body if isinstance(each, ast.AnnAssign)]


def _has_structs(text: str) -> bool:
    bases = [base for each in ast.walk(ast.parse(text)) for base in getattr(each, "bases", ())]
    return any(ast.unparse(base).endswith("Struct") for base in bases)


def _is_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_record(node: ast.AST) -> bool:
    if not isinstance(node, ast.ClassDef):
        return False
    marks = [ast.unparse(each) for each in (*node.decorator_list, *node.bases)]
    return any(mark.startswith(("dataclass", "NamedTuple")) for mark in marks)


def _guarded_imports(tree: ast.Module) -> dict[str, str]:
    """Return the module of each name that is imported for type checkers only."""
    return {
        alias.name: imported.module or ""
        for guard in tree.body
        if _is_guard(guard)
        for imported in ast.walk(guard)
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    }


def _names(annotation: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)]
