"""On what terms requests of a trace are made, as ``...?class=batch&tenant=blue&ttft_ms=500``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from headrace.errors import UsageError
from headrace.monitoring.goodput import NO_TARGETS, Targets
from headrace.twin.names import look_up
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = ("class", "tenant", "weight", "ttft_ms", "itl_ms", "deadline_ms")

_CLASSES = {each.value: each for each in PriorityClass}
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LEAST_WEIGHT, _MOST_WEIGHT = 0.01, 100.0


@dataclass(frozen=True, slots=True)
class Terms:
    """Whose a request is, of what class, and what is asked of its times."""

    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    weight: float = 1.0
    targets: Targets = NO_TARGETS


PLAIN = Terms()


def pairs_of(query: str, text: str) -> list[tuple[str, str]]:
    """Return the pairs of a query. Raises UsageError; ``text`` is what was typed."""
    try:
        return parse_qsl(query, strict_parsing=True) if query else []
    except ValueError:
        raise UsageError(f"{text}: after ? come name=value pairs, joined by &") from None


def terms_of(pairs: Iterable[tuple[str, str]], text: str) -> Terms:
    """Return the terms of pairs, whose names are NAMES. Raises UsageError."""
    terms = PLAIN
    for name, value in pairs:
        match name:
            case "class":
                terms = replace(terms, priority=look_up("class", value, _CLASSES))
            case "tenant":
                if _TENANT.fullmatch(value) is None:
                    raise UsageError(f"{text}: tenant is {value!r}; letters, digits, '.', '_', '-'")
                terms = replace(terms, tenant=value)
            case "weight":
                weight = number_of(name, value, text, least=_LEAST_WEIGHT, most=_MOST_WEIGHT)
                terms = replace(terms, weight=weight)
            case _:
                look_up("term of a trace", name, dict.fromkeys(NAMES, name))
                field = name.removesuffix("_ms")
                seconds = number_of(name, value, text) / 1000
                terms = replace(terms, targets=terms.targets._replace(**{field: seconds}))
    return terms


def number_of(name: str, value: str, text: str, *, least: float = 1e-3, most: float = 1e9) -> float:
    """Return a number of a query. Raises UsageError."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not least <= number <= most:
        raise UsageError(f"{text}: {name} is {value!r}; it must be {least:g} to {most:g}")
    return number
