"""What a request asks of time: its class and its targets, from its body, its header and its key.

Body and header may say the same twice; a contradiction is refused, because one of the two would
have no effect. What a key does not allow is not refused but capped: the answer's header
``x-headrace-class`` names the class that the request got.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from headrace.errors import InvalidRequest
from headrace.monitoring.goodput import NO_TARGETS, Targets
from headrace.server.gateway.api.requests import MAX_MILLISECONDS, ServiceTier, UrgencyFields
from headrace.server.keys import Principal
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.server.gateway.config import GatewayConfig
    from headrace.types import Seconds

ValueT = TypeVar("ValueT")

CLASS_FIELD: Final = b"x-headrace-class"
TTFT_FIELD: Final = b"x-headrace-ttft-ms"
ITL_FIELD: Final = b"x-headrace-itl-ms"
DEADLINE_FIELD: Final = b"x-headrace-deadline-ms"
_IN_ORDER: Final = (CLASS_FIELD, TTFT_FIELD, ITL_FIELD, DEADLINE_FIELD)
HEADER_FIELDS: Final = frozenset(_IN_ORDER)

SAYS_NOTHING: Final = UrgencyFields()
"""A body that asks nothing of time, or is not ours to read."""

_NUMBER = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,6})?")
_CLASSES = {each.value.encode(): each for each in PriorityClass}
_CLASS_OF_TIER = {
    ServiceTier.PRIORITY: PriorityClass.INTERACTIVE,
    ServiceTier.DEFAULT: PriorityClass.STANDARD,
    ServiceTier.FLEX: PriorityClass.BATCH,
}
_TIER_OF_CLASS = {each: tier for tier, each in _CLASS_OF_TIER.items()}


@dataclass(frozen=True, slots=True)
class Urgency:
    """What a request gets: class and targets within what its key allows."""

    priority: PriorityClass = PriorityClass.STANDARD
    targets: Targets = NO_TARGETS

    @property
    def tier(self) -> ServiceTier:
        """The class in OpenAI's words."""
        return _TIER_OF_CLASS[self.priority]

    def fields(self, sent: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Return those of the header fields that were sent, with what the request got."""
        if HEADER_FIELDS.isdisjoint(sent):
            return {}
        values = (self.priority, *self.targets)
        return {
            name: _encoded(value)
            for name, value in zip(_IN_ORDER, values, strict=True)
            if name in sent and value is not None
        }


_USUAL = {
    highest: Urgency(Principal(name="any", highest=highest).capped(PriorityClass.STANDARD))
    for highest in PriorityClass
}
"""What those get that ask for nothing, by the highest class of their key."""


class _Said(NamedTuple, Generic[ValueT]):
    """A value and where it was said."""

    place: str
    value: ValueT


def urgency_of(
    fields: UrgencyFields, headers: Mapping[bytes, bytes], principal: Principal
) -> Urgency:
    """Return what a request gets. Raises InvalidRequest, with ``param``."""
    if fields is SAYS_NOTHING and HEADER_FIELDS.isdisjoint(headers):
        return _USUAL[principal.highest]
    asked = _one(
        _Said("service_tier", _CLASS_OF_TIER[fields.service_tier])
        if fields.service_tier in _CLASS_OF_TIER
        else None,
        _Said("priority_class", fields.priority_class) if fields.priority_class else None,
        _class_in(headers),
    )
    ttft = _target("ttft_ms", fields.ttft_ms, TTFT_FIELD, headers)
    itl = _target("itl_ms", fields.itl_ms, ITL_FIELD, headers)
    deadline = _target("deadline_ms", fields.deadline_ms, DEADLINE_FIELD, headers)
    return Urgency(
        principal.capped(asked or PriorityClass.STANDARD),
        Targets(
            _at_least(ttft, principal.tightest_ttft),
            _at_least(itl, principal.tightest_itl),
            deadline,
        ),
    )


def class_targets(config: GatewayConfig) -> Mapping[PriorityClass, Targets]:
    """Return what requests are measured by that ask for nothing themselves."""

    def targets(ttft_ms: float, itl_ms: float) -> Targets:
        return Targets(ttft_ms / 1000 or None, itl_ms / 1000 or None)

    return {
        PriorityClass.INTERACTIVE: targets(config.interactive_ttft_ms, config.interactive_itl_ms),
        PriorityClass.STANDARD: targets(config.standard_ttft_ms, config.standard_itl_ms),
        PriorityClass.BATCH: targets(config.batch_ttft_ms, config.batch_itl_ms),
    }


def _one(*sayings: _Said[ValueT] | None) -> ValueT | None:
    """Return what was said, if anything. Raises InvalidRequest for a contradiction."""
    said = [each for each in sayings if each is not None]
    for other in said[1:]:
        if other.value != said[0].value:
            raise InvalidRequest(
                f"{said[0].place} says {_shown(said[0].value)} and {other.place} "
                f"{_shown(other.value)}; send one",
                param=other.place,
            )
    return said[0].value if said else None


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _encoded(value: PriorityClass | Seconds) -> bytes:
    text = value.value if isinstance(value, PriorityClass) else f"{1000 * value:.6f}"
    return text.encode()


def _target(
    name: str, in_body: float | None, field: bytes, headers: Mapping[bytes, bytes]
) -> Seconds | None:
    value = _one(None if in_body is None else _Said(name, in_body), _number_in(headers, field))
    return None if value is None else value / 1000


def _at_least(target: Seconds | None, tightest: Seconds) -> Seconds | None:
    return None if target is None else max(target, tightest)


def _number_in(headers: Mapping[bytes, bytes], field: bytes) -> _Said[float] | None:
    text = headers.get(field)
    if text is None:
        return None
    value = float(text) if _NUMBER.fullmatch(text.strip()) else 0.0
    place = field.decode()
    if not 0 < value <= MAX_MILLISECONDS:
        raise InvalidRequest(
            f"{place} must be a number of milliseconds over 0 and up to {MAX_MILLISECONDS:,}",
            param=place,
        )
    return _Said(place, value)


def _class_in(headers: Mapping[bytes, bytes]) -> _Said[PriorityClass] | None:
    text = headers.get(CLASS_FIELD)
    if text is None:
        return None
    place = CLASS_FIELD.decode()
    priority = _CLASSES.get(text.strip().lower())
    if priority is None:
        raise InvalidRequest(f"{place} must be {', '.join(PriorityClass)}", param=place)
    return _Said(place, priority)
