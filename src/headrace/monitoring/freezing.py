"""Freezing: the whole state of a core machine as plain data, and the machine made of it again.

It walks attributes, so no class has to know of it. Plain data are lists of nodes; a value is
itself (None, a number, a string, bytes) or ``[index]`` of another node: so shared objects stay
shared. Thawing calls no code of the machine: it makes empty objects and sets their attributes, and
only of classes that are named in ``ROOMS``, which perform nothing. Objects of compiled classes can
be frozen, but only plain Python thaws them.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, deque
from dataclasses import is_dataclass
from enum import Enum
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOMS = ("headrace.core.", "headrace.types", "headrace.executor.base")
"""Where the classes of a core machine's parts are."""

_COMPILED = "__mypyc_attrs__"
"""Names the attributes of a class that mypyc compiled."""

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_FLAT: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_MAPS: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
_NEW_MAPS: dict[str, Callable[[], dict[object, object]]] = {
    "dict": dict,
    "ordered": OrderedDict,
    "counter": Counter,  # type: ignore[dict-item]
}

Value: TypeAlias = bool | int | float | str | bytes | list[int] | None
Node: TypeAlias = tuple[str, str, list[Value]]
"""Kind, name (of a class or method), content."""


class FreezeError(HeadraceError):
    """A part of a machine that cannot be frozen, or frozen data that nothing can be made of."""


def freeze(root: object) -> list[Node]:
    """Return the nodes of everything that ``root`` refers to; node 0 is ``root``."""
    return _Freezer().run(root)


def thaw(nodes: list[Node]) -> object:
    """Return what was frozen; raises FreezeError."""
    try:
        return _Thawer(nodes).run()
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise FreezeError(f"nothing can be made of this state: {error}") from None


class _Freezer:
    def __init__(self) -> None:
        self._index: dict[int, int] = {}
        self._found: list[object] = []  # by index; kept, so that no id is used twice

    def run(self, root: object) -> list[Node]:
        self._value(root)
        nodes: list[Node] = []
        while len(nodes) < len(self._found):
            nodes.append(self._node(self._found[len(nodes)]))
        return nodes

    def _value(self, value: object) -> Value:
        if type(value) in _PLAIN:
            return value  # type: ignore[return-value]
        index = self._index.get(id(value))
        if index is None:
            index = self._index[id(value)] = len(self._found)
            self._found.append(value)
        return [index]

    def _values(self, values: Iterator[object] | list[object]) -> list[Value]:
        return [self._value(value) for value in values]

    def _node(self, found: object) -> Node:
        kind = type(found)
        if isinstance(found, list | tuple | set | frozenset) and kind in _FLAT:
            return _FLAT[kind], "", self._values(iter(found))
        if isinstance(found, deque):
            return "deque", "", [found.maxlen, *self._values(iter(found))]
        if isinstance(found, dict) and kind in _MAPS:
            pairs = [part for pair in found.items() for part in pair]
            return _MAPS[kind], "", self._values(pairs)
        if isinstance(found, array | np.ndarray):
            return _array_node(found)
        if _is_method(found):
            return "method", found.__name__, [self._value(found.__self__)]
        if isinstance(found, type | FunctionType | BuiltinFunctionType):
            return "global", _name(found), []
        if isinstance(found, Enum):
            return "enum", _name(kind), [found.name]
        if isinstance(found, tuple):
            return "named", _name(kind), self._values(iter(found))
        content: list[Value] = []
        for name in _attributes(found):
            content += (name, self._value(getattr(found, name)))
        return "object", _name(kind), content


class _Thawer:
    """Makes all objects empty first, so that whoever refers to them can be made."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._made: dict[int, object] = {}

    def run(self) -> object:
        for index, (kind, name, _) in enumerate(self._nodes):
            if kind == "object":
                cls = _find(name)
                if not isinstance(cls, type):
                    raise FreezeError(f"{name} is no class")
                self._made[index] = _empty(name, cls)
        for index, (kind, _, content) in enumerate(self._nodes):
            if kind == "object" and is_dataclass(self._made[index]):
                self._fill(index, content)
        for index, (kind, _, content) in enumerate(self._nodes):
            if kind == "object" and not is_dataclass(self._made[index]):
                self._fill(index, content)
        return self._of([0])

    def _fill(self, index: int, content: list[Value]) -> None:
        for name, value in zip(content[::2], content[1::2], strict=True):
            object.__setattr__(self._made[index], str(name), self._of(value))

    def _of(self, value: Value) -> object:
        if not isinstance(value, list):
            return value
        index = value[0]
        if index not in self._made:
            self._make(index)
        return self._made[index]

    def _make(self, index: int) -> None:
        kind, name, content = self._nodes[index]
        match kind:
            case "list":
                items: list[object] = []
                self._made[index] = items
                items.extend(map(self._of, content))
            case "dict" | "ordered" | "counter":
                pairs: dict[object, object] = _NEW_MAPS[kind]()
                self._made[index] = pairs
                for key, value in zip(content[::2], content[1::2], strict=True):
                    pairs[self._of(key)] = self._of(value)
            case "deque":
                length = content[0]
                line: deque[object] = deque(maxlen=length if isinstance(length, int) else None)
                self._made[index] = line
                line.extend(map(self._of, content[1:]))
            case _:
                self._made[index] = self._immutable(kind, name, content)

    def _immutable(self, kind: str, name: str, content: list[Value]) -> object:
        match kind:
            case "array":
                items = array(name)
                items.frombytes(_bytes(content[0]))
                return items
            case "numpy":
                flat = np.frombuffer(_bytes(content[0]), np.dtype(name))
                return flat.reshape([int(str(size)) for size in content[1:]]).copy()
            case "tuple":
                return tuple(map(self._of, content))
            case "set":
                return set(map(self._of, content))
            case "frozenset":
                return frozenset(map(self._of, content))
            case "named":
                return _named(_find(name), [self._of(value) for value in content])
            case "enum":
                return _find(name)[str(content[0])]  # type: ignore[index]
            case "method":
                return self._method(name, self._of(content[0]))
            case "global":
                return _find(name)
            case _:
                raise FreezeError(f"there is no kind of node {kind!r}")

    def _method(self, name: str, owner: object) -> object:
        function = getattr(type(owner), name, None)
        if not isinstance(function, FunctionType):
            raise FreezeError(f"{type(owner).__name__} has no method {name}")
        return MethodType(function, owner)


def _empty(name: str, cls: type) -> object:
    if hasattr(cls, _COMPILED):  # cannot be made without what its __init__ wants
        raise FreezeError(f"{name} is compiled: `headrace replay` runs plain Python")
    return object.__new__(cls)


def _is_method(found: object) -> TypeGuard[MethodType]:
    """Return whether it is a method of an object; of a compiled class it is a built-in one."""
    if isinstance(found, BuiltinFunctionType):
        return not isinstance(found.__self__, ModuleType | type | None)
    return isinstance(found, MethodType)


def _attributes(found: object) -> Iterator[str]:
    """Return the names of the attributes that an object has, its slots first."""
    for cls in type(found).__mro__:
        slots = cls.__dict__.get(_COMPILED, cls.__dict__.get("__slots__", ()))
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(found, name):
                yield name
    if hasattr(found, "__dict__"):
        yield from vars(found)


def _array_node(found: array[int] | np.ndarray) -> Node:
    if isinstance(found, array):
        return "array", found.typecode, [found.tobytes()]
    return "numpy", found.dtype.str, [found.tobytes(), *found.shape]


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise FreezeError("an array without its bytes")
    return value


def _named(cls: object, values: list[object]) -> object:
    if not isinstance(cls, type) or not issubclass(cls, tuple):
        raise FreezeError(f"{cls} is no tuple")
    return tuple.__new__(cls, values)


def _name(found: type | FunctionType | BuiltinFunctionType) -> str:
    name = f"{found.__module__}:{found.__qualname__}"
    if not found.__module__.startswith(ROOMS) or "<" in name:
        raise FreezeError(f"{name} cannot be frozen")
    return name


def _find(name: str) -> object:
    module, _, path = name.partition(":")
    if not module.startswith(ROOMS):
        raise FreezeError(f"{name} cannot be thawed")
    try:
        found: object = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        raise FreezeError(f"there is no {name} in this version") from None
    return found
