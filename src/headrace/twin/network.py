"""Links between processes: messages take their time, come in order, and are lost with their end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from headrace.machine import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.twin.simulator import Simulator
    from headrace.types import Seconds

MessageT = TypeVar("MessageT")


class Random(Protocol):
    """A source of random numbers; numpy's Generator is one."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """How long a message takes: ``seconds``, and up to ``jitter`` more at random.

    The default is a hop between machines of one data centre, kernels included (tens of
    microseconds on the wire and as much in either end).
    """

    seconds: Seconds = 100e-6
    jitter: Seconds = 0.0


class Link(Generic[MessageT]):
    """One direction of a connection. Each message arrives after all that were sent before it."""

    def __init__(
        self,
        simulator: Simulator,
        receive: Callable[[MessageT], None],
        *,
        delay: Delay,
        random: Random,
    ) -> None:
        self._simulator = simulator
        self._receive = receive
        self._delay = delay
        self._random = random
        self._last: Seconds = simulator.now  # arrival of the newest message
        self._is_cut = False

    def send(self, message: MessageT) -> None:
        """Put a message on its way. Over a link that is cut, nothing arrives."""
        if self._is_cut:
            return
        when = self._simulator.now + self._delay.seconds
        if self._delay.jitter:
            when = max(when + self._delay.jitter * self._random.random(), self._last)
            self._last = when
        self._simulator.call_at(when, lambda: self._arrive(message), Source.PEER)

    def cut(self) -> None:
        """Lose what is on its way, and all that is sent from now on."""
        self._is_cut = True

    def _arrive(self, message: MessageT) -> None:
        if not self._is_cut:
            self._receive(message)
