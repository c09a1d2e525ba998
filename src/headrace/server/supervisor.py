"""The supervisor that ``headrace serve`` is: small, and the last to die.

It starts the gateways and the console, lets the controller start the replicas, and ends them in
order: the gateways first (their streams finish), then the replicas, then the console. It knows
nothing of HTTP, models or tokens and imports none of their libraries.

    starting --all ready--> serving --SIGTERM--> draining --children ended--> exit
                                    second signal, or the drain limit: children are killed
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from headrace.server.gateway_set import GatewaySet
from headrace.server.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence

    from headrace.clock import Clock
    from headrace.server.child import Failed, Ready
    from headrace.server.gateway_set import GatewayStart, Links
    from headrace.server.keeper import Death, KeeperLimits
    from headrace.server.process import ChildSpec
    from headrace.server.provisioner import Place
    from headrace.types import Seconds

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """What the supervisor starts, and its limits. ``floor`` replicas make the server ready."""

    gateways: int
    describe: Callable[[int, int], GatewayStart]  # a gateway by its place and generation
    handover_seconds: Seconds
    console: ChildSpec | None
    floor: int
    limits: KeeperLimits


@dataclass(frozen=True, slots=True)
class Ending:
    """How a server ended. ``message`` is for the user; empty if all went well."""

    exit_code: int
    message: str = ""


class Announcer(Protocol):
    """Where the supervisor tells people how it goes."""

    def progress(self, child: str, text: str) -> None:
        """A child is busy with something before it is ready."""
        ...

    def ready(self, replicas: Sequence[Place], *, seconds: Seconds) -> None:
        """Everything is ready for the first time. ``seconds`` since the command began."""
        ...

    def draining(self, *, limit: Seconds) -> None:
        """The server was told to end; running requests have so long."""
        ...

    def trouble(self, text: str) -> None:
        """Something died, or does not end."""
        ...


class Replicas(Protocol):
    """The controller, as the supervisor sees it."""

    async def floor_is_ready(self, floor: int) -> Sequence[Place]:
        """Wait until so many replicas are ready."""
        ...

    def freeze(self) -> None:
        """Decide nothing more."""
        ...

    def kill(self) -> None:
        """End all replicas, now."""
        ...

    async def close(self) -> Sequence[str]:
        """End all replicas; return the names of those that did not end well."""
        ...


class Supervisor:
    """Runs a ServerPlan. ``begun`` is when the command was given.

    Implements KeeperEvents for gateways, console and replicas, and ControllerEvents.
    """

    def __init__(
        self, plan: ServerPlan, *, announcer: Announcer, links: Links, clock: Clock, begun: Seconds
    ) -> None:
        self._plan = plan
        self._announcer = announcer
        self._clock = clock
        self._begun = begun
        self.gateways = GatewaySet(
            plan.describe,
            number=plan.gateways,
            limits=plan.limits,
            handover_seconds=plan.handover_seconds,
            events=self,
            links=links,
            clock=clock,
        )
        self._console: Keeper | None = None
        if plan.console is not None:
            self._console = Keeper(plan.console, limits=plan.limits, events=self, clock=clock)
        self._fate = _Fate()
        self._is_announced = False

    async def run(self, replicas: Replicas, services: Coroutine[None, None, None]) -> Ending:
        """Run until a signal or until it is hopeless. No child outlives this call.

        ``services`` (control link, admin plane) run from the start to the very end.
        """
        with self._fate.decided_by_signals():
            try:
                async with asyncio.TaskGroup() as group:
                    serving = group.create_task(services)
                    self.gateways.start()
                    console = None if self._console is None else self._console.run()
                    task = None if console is None else group.create_task(console)
                    announcing = group.create_task(self._announce(replicas))
                    await self._fate.stop.wait()
                    announcing.cancel()
                    await self._drain(replicas, task)
                    serving.cancel()
            finally:
                replicas.kill()
                self.gateways.kill()
                if self._console is not None:
                    self._console.kill()
        return self._fate.ending()

    async def _announce(self, replicas: Replicas) -> None:
        """Say that all is ready, once. Bounded by each child's start_seconds."""
        await self.gateways.all_ready()
        places = await replicas.floor_is_ready(self._plan.floor)
        self._is_announced = True
        self._announcer.ready(places, seconds=self._clock.now() - self._begun)

    async def _drain(self, replicas: Replicas, console: asyncio.Task[bool] | None) -> None:
        """End the gateways, the replicas, the console; a second signal kills what is left."""
        replicas.freeze()
        if self._fate.failure is None:
            self._announcer.draining(limit=self._plan.limits.drain_seconds)
        self._fate.bad_ends += await self._unless_killed(self.gateways.end(), self._kill_gateways)
        self._fate.bad_ends += await self._unless_killed(replicas.close(), replicas.kill)
        if self._console is not None and console is not None:
            self._console.end()
            await self._unless_killed(console, self._console.kill)  # no request needs it

    def _kill_gateways(self) -> None:
        if self._fate.failure is None:
            for keeper in self.gateways.children:
                if keeper.child.pid is not None:
                    self._announcer.trouble(f"{keeper.child.name} is killed")
        self.gateways.kill()

    async def _unless_killed(self, ending: Awaitable[T], kill: Callable[[], None]) -> T:
        """Wait for an end, which its keeper bounds, or bring it about at the second signal."""
        task = asyncio.ensure_future(ending)
        killed = asyncio.create_task(_set(self._fate.kill))
        await asyncio.wait({killed, task}, return_when=asyncio.FIRST_COMPLETED)
        killed.cancel()
        if not task.done():
            kill()
        return await task

    # From keepers and the controller

    def child_progress(self, child: str, text: str) -> None:
        """See KeeperEvents."""
        self._announcer.progress(child, text)

    def child_ready(self, child: str, report: Ready, seconds: Seconds) -> None:
        """See KeeperEvents."""

    def child_died(self, death: Death) -> None:
        """See KeeperEvents. Without a console the server serves on."""
        hopeless = death.hopeless
        if hopeless is None:
            self._announcer.trouble(str(death))
        elif self._console is not None and death.child == self._console.child.name:
            self._announcer.trouble(f"there is no console: {hopeless.message}")
            self._console.end()
        else:
            self._fate.give_up(hopeless)

    def pool_trouble(self, text: str) -> None:
        """See ControllerEvents."""
        if self._fate.failure is None:
            self._announcer.trouble(text)

    def pool_hopeless(self, failure: Failed) -> None:
        """See ControllerEvents. Once the server was ready, other replicas go on serving."""
        if not self._is_announced:
            self._fate.give_up(failure)

    def pool_fault(self, error: Exception) -> None:
        """See ControllerEvents."""
        _log.critical("the autoscaler died; the replicas stay as they are", exc_info=error)


class _Fate:
    """Whether the server is to end, how fast, and how it did."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.kill = asyncio.Event()
        self.failure: Failed | None = None  # why it cannot go on
        self.bad_ends: list[str] = []  # children that did not end as asked

    @contextmanager
    def decided_by_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._signalled)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def give_up(self, failure: Failed) -> None:
        self.failure = self.failure or failure
        self.kill.set()
        self.stop.set()

    def ending(self) -> Ending:
        if self.failure is not None:
            return Ending(self.failure.exit_code, self.failure.message)
        if self.bad_ends:
            return Ending(1, f"{', '.join(self.bad_ends)} did not end well")
        return Ending(0)

    def _signalled(self) -> None:
        if self.stop.is_set():
            self.kill.set()
        self.stop.set()


async def _set(event: asyncio.Event) -> None:
    await event.wait()
