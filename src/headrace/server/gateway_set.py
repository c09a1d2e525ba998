"""GatewaySet: the places where gateway processes run, and how one process takes over from another.

Each place has a listening socket of its own on the shared port. The sockets are the supervisor's:
they outlive every process, and what is in an accept queue waits for the next one that accepts.

    replace: successor starts --ready--> both accept --hand over--> the old one leaves
             new connections to the successor, serves those it has, drains, ends

A successor that does not become ready is ended, and the old process stays.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headrace.errors import StartError
from headrace.server.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from headrace.clock import Clock
    from headrace.server.child import Ready
    from headrace.server.keeper import Death, KeeperEvents, KeeperLimits
    from headrace.server.process import ChildSpec
    from headrace.types import Seconds

HAND_OVER = signal.SIGUSR2
"""Tells a gateway that another one takes over its socket."""


FIRST_PAUSE: Seconds = 0.05
"""After a first death: new connections wait in the socket of the dead. It doubles as for others."""


class GatewayStart(NamedTuple):
    """One gateway process: its name, where it is spoken to, and how it is started."""

    name: str
    control: Path
    spec: ChildSpec


class Links(Protocol):
    """Who speaks to gateways."""

    def open(self, name: str, control: Path) -> None:
        """A gateway of that name comes, and comes again if it dies."""
        ...

    def close(self, name: str) -> None:
        """It is gone for good."""
        ...


@dataclass(slots=True, eq=False)
class _Kept:
    """A process at a place, from its start to its end for good."""

    name: str
    control: Path
    keeper: Keeper
    task: asyncio.Task[bool]
    ready: asyncio.Event
    stays: bool = True  # False: another has taken over, or it is not to be


class GatewaySet:
    """``describe(place, generation)`` says what to start; ``events`` hears of current ones."""

    def __init__(
        self,
        describe: Callable[[int, int], GatewayStart],
        *,
        number: int,
        limits: KeeperLimits,
        handover_seconds: Seconds,
        events: KeeperEvents,
        links: Links,
        clock: Clock,
    ) -> None:
        self._describe = describe
        self._number = number
        restarts = limits.restarts
        pause = min(restarts.min_seconds, FIRST_PAUSE)
        self._limits = replace(limits, restarts=replace(restarts, min_seconds=pause))
        self._handover_seconds = handover_seconds
        self._events = events
        self._links = links
        self._clock = clock
        self._places: list[_Kept] = []
        self._leaving: list[_Kept] = []
        self._generation = 0

    @property
    def children(self) -> Sequence[Keeper]:
        """All that run, those that leave included."""
        return [each.keeper for each in (*self._places, *self._leaving)]

    @property
    def names(self) -> list[str]:
        """Of the current process at each place."""
        return [each.name for each in self._places]

    def processes(self) -> list[tuple[str, Keeper]]:
        """Return name and keeper of all that run."""
        return [(each.name, each.keeper) for each in (*self._places, *self._leaving)]

    def start(self) -> None:
        """Start one process for each place."""
        self._places = [self._start(place, 0) for place in range(self._number)]

    async def all_ready(self) -> None:
        """Wait until each place serves. Bounded by each child's start_seconds."""
        for kept in self._places:
            await kept.ready.wait()

    async def replace(self, place: int) -> None:
        """Have a new process take over a place; return when the old one has ended.

        Raises StartError if the new one does not become ready; then the old one stays.
        """
        self._generation += 1
        old, new = self._places[place], self._start(place, self._generation)
        new.stays = False
        self._leaving.append(new)
        ready = asyncio.create_task(_set(new.ready))
        await asyncio.wait({ready, new.task}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        self._leaving.remove(new)
        if not new.ready.is_set():
            self._forget(new)
            raise StartError(f"{new.keeper.child.name} did not become ready; {old.name} stays")
        new.stays, old.stays = True, False
        self._places[place] = new
        self._leaving.append(old)
        old.keeper.end(HAND_OVER, patience=self._handover_seconds)
        await old.task
        self._leaving.remove(old)
        self._forget(old)

    async def end(self) -> list[str]:
        """End all; return the names of those that did not end well."""
        kept = [*self._places, *self._leaving]
        for each in kept:
            each.keeper.end()
        ended = await asyncio.gather(*(each.task for each in kept))
        return [each.keeper.child.name for each, well in zip(kept, ended, strict=True) if not well]

    def kill(self) -> None:
        """End all, now."""
        for keeper in self.children:
            keeper.kill()

    def _start(self, place: int, generation: int) -> _Kept:
        start = self._describe(place, generation)
        ready = asyncio.Event()
        listener = _Listener(self, ready)
        keeper = Keeper(start.spec, limits=self._limits, events=listener, clock=self._clock)
        kept = _Kept(start.name, start.control, keeper, asyncio.create_task(keeper.run()), ready)
        listener.kept = kept
        self._links.open(start.name, start.control)
        return kept

    def _forget(self, kept: _Kept) -> None:
        self._links.close(kept.name)
        kept.control.unlink(missing_ok=True)  # nobody listens there any more

    # From keepers

    def progress(self, child: str, text: str) -> None:
        """See KeeperEvents."""
        self._events.child_progress(child, text)

    def died(self, kept: _Kept, death: Death) -> None:
        """See KeeperEvents. One that is not current is not started again."""
        if kept.stays:
            self._events.child_died(death)
        else:
            kept.keeper.kill()


class _Listener:
    """Implements KeeperEvents for one process."""

    def __init__(self, gateways: GatewaySet, ready: asyncio.Event) -> None:
        self.kept: _Kept | None = None
        self._gateways = gateways
        self._ready = ready

    def child_progress(self, child: str, text: str) -> None:
        """See KeeperEvents."""
        self._gateways.progress(child, text)

    def child_ready(self, child: str, report: Ready, seconds: Seconds) -> None:
        """See KeeperEvents."""
        self._ready.set()

    def child_died(self, death: Death) -> None:
        """See KeeperEvents."""
        assert self.kept is not None  # processes end later than they are started
        self._gateways.died(self.kept, death)


async def _set(event: asyncio.Event) -> None:
    await event.wait()
