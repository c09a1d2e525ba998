"""AsyncioDriver: runs a Machine on an event loop.

It feeds events, performs effects in order, and keeps one timer at ``next_wakeup()``. Events that
come in one turn of the loop are handled at its end, in the order of (source, arrival), so that a
run on ``headrace.testing``'s virtual-time loop and one in the twin are the same to the last bit.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Generic, TypeVar

from headrace.errors import InvariantBroken
from headrace.machine import Source, Tick

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from headrace.clock import Clock
    from headrace.machine import Machine
    from headrace.types import Seconds

EventT = TypeVar("EventT")
EffectT = TypeVar("EffectT")


class AsyncioDriver(Generic[EventT, EffectT]):
    """Drives ``machine`` until it fails or is closed. To be used on ``loop``'s thread only.

    ``perform`` carries out one effect and returns at once; what comes of it is fed later.
    ``clock`` must tick as ``loop.time()`` does: MonotonicClock, on asyncio's loop and on uvloop.
    ``on_fault`` gets the exception that killed the machine (M5); after it nothing is handled.
    ``observe`` sees every event with its time and effects, before they are performed: a journal.
    """

    def __init__(
        self,
        machine: Machine[EventT | Tick, EffectT],
        *,
        perform: Callable[[EffectT], None],
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        on_fault: Callable[[Exception], None],
        observe: Callable[[EventT | Tick, Seconds, Sequence[EffectT]], None] | None = None,
    ) -> None:
        self._machine = machine
        self._perform = perform
        self._clock = clock
        self._on_fault = on_fault
        self._observe = observe
        self._inbox: _Inbox[EventT | Tick] = _Inbox(loop, self._drain)
        self._alarm = _Alarm(loop, lambda: self._inbox.put(Tick(), Source.TIMER))
        self._now: Seconds = float("-inf")
        self._wakeup: Seconds | None = machine.next_wakeup()  # after the last event
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the machine failed or the driver was closed."""
        return self._closed

    def feed(self, event: EventT, source: Source = Source.PEER) -> None:
        """Hand over an event; it is handled before the loop turns twice. Ignored when closed."""
        if not self._closed:
            self._inbox.put(event, source)

    def close(self) -> None:
        """Handle nothing more. Idempotent."""
        self._closed = True
        self._alarm.set(None)
        self._inbox.clear()

    def _drain(self) -> None:
        try:
            while (event := self._inbox.get()) is not None:
                self._handle(event)
            if not self._closed:
                self._alarm.set(self._wakeup)
        except Exception as error:  # the machine is dead (M5); its owner logs and ends
            self.close()
            self._on_fault(error)

    def _handle(self, event: EventT | Tick) -> None:
        now = self._now = max(self._now, self._clock.now())  # M4
        if isinstance(event, Tick) and not _is_due(self._machine.next_wakeup(), now):
            return
        effects = self._machine.handle(event, now)
        wakeup = self._wakeup = self._machine.next_wakeup()
        if _is_due(wakeup, now):
            raise InvariantBroken(f"M3: after {event} at {now} the machine wakes at {wakeup}")
        if self._observe is not None:
            self._observe(event, now, effects)
        for effect in effects:
            self._perform(effect)


def _is_due(wakeup: Seconds | None, now: Seconds) -> bool:
    return wakeup is not None and wakeup <= now


class _Inbox(Generic[EventT]):
    """Events by (source, arrival); calls ``drain`` soon after the first one came in.

    It is bounded by what the loop's callbacks feed in one turn: its owners read sockets of
    bounded number, in bounded pieces.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, drain: Callable[[], None]) -> None:
        self._loop = loop
        self._drain = drain
        self._heap: list[tuple[Source, int, EventT]] = []
        self._num_put = 0
        self._is_drained = True

    def put(self, event: EventT, source: Source) -> None:
        heappush(self._heap, (source, self._num_put, event))
        self._num_put += 1
        if self._is_drained:
            self._is_drained = False
            self._loop.call_soon(self._drain)

    def get(self) -> EventT | None:
        """Return the next event; None when there is none, and the next ``put`` calls again."""
        if self._heap:
            return heappop(self._heap)[2]
        self._is_drained = True
        return None

    def clear(self) -> None:
        self._heap.clear()


class _Alarm:
    """One timer, set anew only when its time changes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._when: Seconds | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, when: Seconds | None) -> None:
        """Ring at ``when`` and no other time; None for never."""
        if when == self._when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._when = when
        self._timer = None if when is None else self._loop.call_at(when, self._rung)

    def _rung(self) -> None:
        self._when = self._timer = None
        self._ring()
