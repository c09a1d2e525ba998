"""A model file's metadata: names and values, with typed access that fails in one clear line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias, TypeVar

from headrace.errors import ModelFileError

MetadataValue: TypeAlias = (
    str
    | bool
    | int
    | float
    | tuple[str, ...]
    | tuple[bool, ...]
    | tuple[int, ...]
    | tuple[float, ...]
)
_Item = TypeVar("_Item", str, int, float)


class Metadata(Mapping[str, MetadataValue]):
    """What a model file says of itself. ``source`` names the file in messages.

    The typed getters raise ModelFileError when a key is there with a value of another type, or
    when it is missing and no default is given.
    """

    def __init__(self, values: Mapping[str, MetadataValue], *, source: str) -> None:
        self._values = values
        self.source = source

    def __getitem__(self, key: str) -> MetadataValue:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._values.get(key, default)
        if isinstance(value, str):
            return value
        raise self._wrong(key, "a string", value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self._values.get(key, default)
        if isinstance(value, bool):
            return value
        raise self._wrong(key, "true or false", value)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number of zero or more."""
        value = self._values.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        raise self._wrong(key, "a whole number of zero or more", value)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._values.get(key, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e308:
            return float(value)
        raise self._wrong(key, "a finite number", value)

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of strings, which may be empty but not missing."""
        return self._items(key, str, "a list of strings")

    def integers(self, key: str) -> tuple[int, ...]:
        """Return a list of whole numbers, which may be empty but not missing."""
        return self._items(key, int, "a list of whole numbers")

    def floats(self, key: str) -> tuple[float, ...]:
        """Return a list of floating-point numbers, which may be empty but not missing."""
        return self._items(key, float, "a list of floating-point numbers")

    def _items(self, key: str, item_type: type[_Item], wanted: str) -> tuple[_Item, ...]:
        value = self._values.get(key)
        if isinstance(value, tuple):
            found = tuple([item for item in value if isinstance(item, item_type)])
            if len(found) == len(value):
                return found
        raise self._wrong(key, wanted, value)

    def _wrong(self, key: str, wanted: str, value: MetadataValue | None) -> ModelFileError:
        if value is None:
            problem = f"has no {key!r} ({wanted})"
        elif isinstance(value, tuple):
            problem = f"{key!r} is a list of {len(value)} items, not {wanted}"
        else:
            problem = f"{key!r} is {str(value)[:60]!r}, not {wanted}"
        return ModelFileError(
            f"{self.source}: {problem}; use a file converted by a current llama.cpp"
        )
