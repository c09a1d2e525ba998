"""Journal: what a machine was told, when, and what it answered. Both drivers' ``observe``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headrace.machine import Machine
    from headrace.types import Seconds

EventT = TypeVar("EventT")
EffectT = TypeVar("EffectT")


class Entry(NamedTuple, Generic[EventT, EffectT]):
    """One event at its time, and its effects."""

    now: Seconds
    event: EventT
    effects: tuple[EffectT, ...]


class Journal(Generic[EventT, EffectT]):
    """Grows with every event that ``observe`` is told of."""

    def __init__(self) -> None:
        self.entries: list[Entry[EventT, EffectT]] = []

    def observe(self, event: EventT, now: Seconds, effects: Sequence[EffectT]) -> None:
        """Write down one event."""
        self.entries.append(Entry(now, event, tuple(effects)))

    def text(self) -> str:
        """Return one line for each entry; equal exactly if the runs were."""
        return "".join(
            f"{now!r} {event!r} -> {effects!r}\n" for now, event, effects in self.entries
        )

    @property
    def effects(self) -> Iterable[EffectT]:
        """All effects, in order."""
        return (effect for entry in self.entries for effect in entry.effects)


def replay(
    journal: Journal[EventT, EffectT], machine: Machine[EventT, EffectT]
) -> Journal[EventT, EffectT]:
    """Tell a fresh machine the events of a journal; return what it answers."""
    again: Journal[EventT, EffectT] = Journal()
    for now, event, _ in journal.entries:
        again.observe(event, now, machine.handle(event, now))
    return again
