"""Simulator: runs Machines in virtual time, as fast as they decide.

Everything that will happen lies in one heap ordered by (time, source, arrival), so a run is a
function of its inputs. Each machine may have a clock of its own, ``clock_offset`` seconds from
the simulator's: a machine that compared another's timestamps with its own ``now`` would fail.

It knows no machine and no effect: performers schedule what comes of effects with ``feed_at``.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Generic, TypeVar

from headrace.errors import InvariantBroken
from headrace.machine import Source, Tick

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.machine import Machine
    from headrace.types import Seconds

EventT = TypeVar("EventT")
EffectT = TypeVar("EffectT")


class Simulator:
    """Virtual time ``now``, in seconds, and what will happen."""

    def __init__(self, start: Seconds = 0.0) -> None:
        self.now = start
        self._heap: list[tuple[Seconds, Source, int, Callable[[], None]]] = []
        self._num_scheduled = 0
        self._is_stopped = False

    def stop(self) -> None:
        """Let ``run`` return after what is happening now."""
        self._is_stopped = True

    def call_at(self, when: Seconds, callback: Callable[[], None], source: Source) -> None:
        """Call back at ``when``, which must not lie in the past."""
        if when < self.now:
            raise ValueError(f"{when} s lies before now, {self.now} s")
        heappush(self._heap, (when, source, self._num_scheduled, callback))
        self._num_scheduled += 1

    def call_every(self, period: Seconds, callback: Callable[[], bool]) -> None:
        """Call back every ``period`` from now on, until ``callback`` returns False."""

        def ring() -> None:
            if callback():
                self.call_at(self.now + period, ring, Source.TIMER)

        self.call_at(self.now + period, ring, Source.TIMER)

    def run(self, until: Seconds = math.inf, max_events: int = 10_000_000) -> None:
        """Let things happen until ``until``, until ``stop``, or until nothing is left to happen."""
        heap = self._heap
        self._is_stopped = False
        for _ in range(max_events):
            if not heap or heap[0][0] > until or self._is_stopped:
                return
            self.now, _, _, callback = heappop(heap)
            callback()
        raise InvariantBroken(f"not at rest after {max_events} events, at {self.now} s")


class SimulatedDriver(Generic[EventT, EffectT]):
    """Runs one machine in a Simulator, as AsyncioDriver does on a loop.

    ``perform`` and ``observe`` as there; ``observe`` sees the machine's own time.
    """

    def __init__(
        self,
        simulator: Simulator,
        machine: Machine[EventT | Tick, EffectT],
        *,
        perform: Callable[[EffectT], None],
        clock_offset: Seconds = 0.0,
        observe: Callable[[EventT | Tick, Seconds, Sequence[EffectT]], None] | None = None,
    ) -> None:
        self._simulator = simulator
        self._machine = machine
        self._perform = perform
        self._clock_offset = clock_offset
        self._observe = observe
        self._alarm: Seconds | None = None  # on the simulator's clock
        self._is_closed = False

    @property
    def now(self) -> Seconds:
        """The time on this machine's clock."""
        return self._simulator.now + self._clock_offset

    def feed(self, event: EventT, source: Source = Source.PEER) -> None:
        """Hand over an event now, after what is happening."""
        self.feed_at(self._simulator.now, event, source)

    def feed_at(self, when: Seconds, event: EventT, source: Source = Source.PEER) -> None:
        """Hand over an event at ``when`` on the simulator's clock."""
        self._simulator.call_at(when, lambda: self.deliver(event), source)

    def close(self) -> None:
        """Decide nothing more: the process is gone."""
        self._is_closed = True

    def deliver(self, event: EventT | Tick) -> None:
        """Hand over an event at once. Not to be called from ``perform``."""
        if self._is_closed:
            return
        now = self.now
        effects = self._machine.handle(event, now)
        wakeup = self._machine.next_wakeup()
        if wakeup is not None and wakeup <= now:
            raise InvariantBroken(f"M3: after {event} at {now} the machine wakes at {wakeup}")
        if self._observe is not None:
            self._observe(event, now, effects)
        for effect in effects:
            self._perform(effect)
        self._set_alarm(wakeup)

    def _set_alarm(self, wakeup: Seconds | None) -> None:
        if wakeup is None:
            self._alarm = None
            return
        when = wakeup - self._clock_offset
        while when + self._clock_offset < wakeup:  # rounding must not ring too early, for ever
            when = math.nextafter(when, math.inf)
        if when != self._alarm:
            self._alarm = when
            self._simulator.call_at(when, lambda: self._ring(when), Source.TIMER)

    def _ring(self, when: Seconds) -> None:
        """Hand over a Tick, unless the machine has changed its mind."""
        if when != self._alarm:
            return
        self._alarm = None
        wakeup = self._machine.next_wakeup()
        if wakeup is not None and wakeup <= self.now:
            self.deliver(Tick())
