"""Names that people type: found in a table, or answered with near ones."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

from headrace.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

ValueT = TypeVar("ValueT")


def look_up(kind: str, name: str, table: Mapping[str, ValueT]) -> ValueT:
    """Return ``table[name]``. Raises UsageError that offers near names, or all of them."""
    found = table.get(name.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), table, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(table)}"
    raise UsageError(f"unknown {kind} {name!r}: {hint}")
