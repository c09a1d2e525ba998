"""Checks what linters do not: purity of the core, who may touch what, and the size budget.

Run as ``python scripts/architecture.py [DIRECTORY]``; prints one line per finding and exits 1 if
there is any. The rules are those of docs/architecture.md.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_NESTING = 3
MAX_CLASS_LINES = 250
MAX_PUBLIC_METHODS = 12
MAX_ATTRIBUTES = 10
LONG_MODULE_REASON = "Long because"

CORE_IMPORTS = frozenset(
    {"__future__", "abc", "array", "bisect", "collections", "dataclasses", "enum", "functools"}
    | {"hashlib", "hmac", "heapq", "itertools", "math", "operator", "struct", "typing", "numpy"}
)
CORE_SIBLINGS = frozenset({"types", "errors", "machine", "core"})
"""Of ours, what the core may import."""

ONLY_IN = {
    "time": ("clock.py",),
    "random": (),
    "openvino": ("executor/openvino/",),
    "torch": ("executor/torch/",),
    "ray": ("cluster/ray.py",),
    "llguidance": ("model/grammar.py",),
    "zmq": ("server/gateway/foreign/kv_socket.py", "testing/"),
    "gguf": ("model/", "executor/", "testing/"),
}
ENVIRONMENT_ONLY_IN = ("config.py",)

NESTING = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Finding(NamedTuple):
    """One broken rule."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def imported_modules(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield (dotted module, line) of every import, also those under ``if TYPE_CHECKING``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno


def check_imports(tree: ast.Module, path: Path, place: str) -> Iterator[Finding]:
    """Check imports of one module; ``place`` is its path below the package, with slashes."""
    for module, line in imported_modules(tree):
        top, *rest = module.split(".")
        if place.startswith("core/"):
            own = top == "headrace" and rest and rest[0] in CORE_SIBLINGS
            if not own and top not in CORE_IMPORTS:
                yield Finding(path, line, f"core may not import {module}")
        allowed = ONLY_IN.get(top)
        if allowed is not None and not place.startswith(allowed):
            yield Finding(path, line, f"{top} may be imported only in {allowed or 'no room'}")


def check_environment(tree: ast.Module, path: Path, place: str) -> Iterator[Finding]:
    """Only config.py reads the environment."""
    if place.startswith(ENVIRONMENT_ONLY_IN):
        return
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "getenv"):
                yield Finding(path, node.lineno, "only config.py reads the environment")


def lines_of(node: ast.AST) -> int:
    """Lines of a definition without its docstring."""
    assert isinstance(node, (*FUNCTIONS, ast.ClassDef))
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    match node.body[0]:
        case ast.Expr(value=ast.Constant(value=str())) as docstring:
            length -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return length


def nesting(node: ast.AST, depth: int = 0) -> int:
    """Deepest nesting of blocks; ``elif`` is no deeper than its ``if``."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            continue
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        inner = depth + (isinstance(child, NESTING) and not is_elif)
        deepest = max(deepest, nesting(child, inner))
    return deepest


def check_function(node: ast.AST, path: Path) -> Iterator[Finding]:
    """Length and nesting of one function."""
    assert isinstance(node, FUNCTIONS)
    if (length := lines_of(node)) > MAX_FUNCTION_LINES:
        yield Finding(path, node.lineno, f"{node.name} has {length} lines > {MAX_FUNCTION_LINES}")
    if (depth := nesting(node)) > MAX_NESTING:
        yield Finding(path, node.lineno, f"{node.name} nests {depth} deep > {MAX_NESTING}")


def attributes(node: ast.ClassDef) -> set[str]:
    """Names assigned to ``self`` anywhere in a class."""
    found = set()
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def check_class(node: ast.ClassDef, path: Path) -> Iterator[Finding]:
    """Length, public methods and attributes of one class."""
    methods = [n for n in node.body if isinstance(n, FUNCTIONS) and not n.name.startswith("_")]
    numbers = (
        ("lines", lines_of(node), MAX_CLASS_LINES),
        ("public methods", len(methods), MAX_PUBLIC_METHODS),
        ("attributes", len(attributes(node)), MAX_ATTRIBUTES),
    )
    for name, number, limit in numbers:
        if number > limit:
            yield Finding(path, node.lineno, f"{node.name} has {number} {name} > {limit}")


def check_sizes(tree: ast.Module, path: Path, num_lines: int) -> Iterator[Finding]:
    """The size budget of one module."""
    if num_lines > MAX_MODULE_LINES and LONG_MODULE_REASON not in (ast.get_docstring(tree) or ""):
        yield Finding(
            path, 1, f"{num_lines} lines > {MAX_MODULE_LINES} and no '{LONG_MODULE_REASON}'"
        )
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            yield from check_function(node, path)
        elif isinstance(node, ast.ClassDef):
            yield from check_class(node, path)


def check_package(package: Path) -> Iterator[Finding]:
    """Check every module below ``package``."""
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text, filename=str(path))
        place = path.relative_to(package).as_posix()
        yield from check_imports(tree, path, place)
        yield from check_environment(tree, path, place)
        yield from check_sizes(tree, path, text.count("\n"))


def main(arguments: list[str]) -> int:
    """Print findings; return the exit code."""
    package = Path(arguments[0]) if arguments else Path("src/headrace")
    findings = list(check_package(package))
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
