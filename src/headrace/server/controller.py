"""The supervisor that ``headrace serve`` is: small, and the last to die.

It owns the listening socket and the run directory, starts one gateway and N engines, starts again
what dies, and ends them in order: the gateway first (its streams finish), then the engines. It
knows nothing of HTTP, models or tokens and imports none of their libraries.

    starting --all ready--> serving --SIGTERM--> draining --children ended--> exit
                                    second signal, or the drain limit: children are killed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, assert_never

import msgspec

from headrace.server.child import (
    Failed,
    Progress,
    Ready,
    Report,
    decode_report,
)
from headrace.server.process import ChildProcess, ChildSpec
from headrace.server.restarts import RestartLimits, RestartPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from headrace.clock import Clock
    from headrace.types import Seconds

KILL_GRACE_SECONDS = 5.0
"""After its own drain limit a child has this long to end before it is killed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """What the supervisor starts, and its limits."""

    gateway: ChildSpec
    engines: tuple[ChildSpec, ...]
    restarts: RestartLimits
    start_seconds: Seconds
    drain_seconds: Seconds


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

    def ready(self, gateway: Ready, engines: Sequence[Ready], *, seconds: Seconds) -> None:
        """Everything is ready for the first time. ``seconds`` since the command began."""
        ...

    def draining(self, *, limit: Seconds) -> None:
        """The server was told to end; running requests have so long."""
        ...

    def trouble(self, text: str) -> None:
        """Something died, or does not end."""
        ...


class Child:
    """One child process at a time, and what it said last."""

    def __init__(self, spec: ChildSpec, announcer: Announcer, clock: Clock) -> None:
        self.spec = spec
        self._announcer = announcer
        self._clock = clock
        self._process: ChildProcess | None = None
        self._late: asyncio.TimerHandle | None = None
        self._ready_at: Seconds | None = None
        self.is_ready = asyncio.Event()
        self.report: Ready | None = None
        self.failure: Failed | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def ready_seconds(self) -> Seconds | None:
        """How long the process has been ready; None if it never was."""
        return None if self._ready_at is None else self._clock.now() - self._ready_at

    async def run(self, *, start_seconds: Seconds) -> int:
        """Start the process and wait for its end; return its exit code (negative: a signal)."""
        self.failure = None
        self._ready_at = None
        loop = asyncio.get_running_loop()
        self._late = loop.call_later(start_seconds, self._too_late, start_seconds)
        self._process = ChildProcess(self.spec, self._take)
        try:
            return await self._process.ended()
        finally:
            self._late.cancel()
            self._process = None
            self.is_ready.clear()

    def terminate(self) -> None:
        """Ask the process to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and whatever it started."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.signal(number)

    def _take(self, line: bytes) -> None:
        try:
            report: Report = decode_report(line)
        except msgspec.MsgspecError as error:
            _log.error("report of %s: %s", self.spec.name, error)
            return
        match report:
            case Progress():
                self._announcer.progress(self.spec.name, report.text)
            case Ready():
                if self._late is not None:
                    self._late.cancel()
                self.report = report
                self._ready_at = self._clock.now()
                self.is_ready.set()
            case Failed():
                self.failure = report
            case _:
                assert_never(report)

    def _too_late(self, seconds: Seconds) -> None:
        self.failure = Failed(f"{self.spec.name} was not ready within {seconds:g} s", 1)
        self.kill()


class Supervisor:
    """Runs a ServerPlan. ``begun`` is when the command was given."""

    def __init__(
        self, plan: ServerPlan, *, announcer: Announcer, clock: Clock, begun: Seconds
    ) -> None:
        self._plan = plan
        self._announcer = announcer
        self._clock = clock
        self._begun = begun
        self._gateway = Child(plan.gateway, announcer, clock)
        self._engines = tuple(Child(spec, announcer, clock) for spec in plan.engines)
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._failure: Failed | None = None  # why it cannot go on
        self._bad_ends: deque[str] = deque(maxlen=64)  # children that did not end as asked

    async def run(self) -> Ending:
        """Run until a signal or until it is hopeless. No child outlives this call."""
        children = (self._gateway, *self._engines)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(self._keep(child)) for child in children]
                announcing = group.create_task(self._announce())
                await self._stop.wait()
                announcing.cancel()
                await self._drain(keepers)
        finally:
            for child in children:
                child.kill()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return self._ending()

    def _ending(self) -> Ending:
        if self._failure is not None:
            return Ending(self._failure.exit_code, self._failure.message)
        if self._bad_ends:
            return Ending(1, f"{', '.join(self._bad_ends)} did not end well")
        return Ending(0)

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()

    async def _announce(self) -> None:
        """Say that all is ready, once."""
        children = (self._gateway, *self._engines)
        while not all(child.is_ready.is_set() for child in children):
            for child in children:
                await child.is_ready.wait()  # bounded by each child's start_seconds
        assert self._gateway.report is not None
        engines = [child.report for child in self._engines if child.report is not None]
        seconds = self._clock.now() - self._begun
        self._announcer.ready(self._gateway.report, engines, seconds=seconds)

    async def _keep(self, child: Child) -> None:
        """Run a child again and again, until the server stops."""
        policy = RestartPolicy(self._plan.restarts)
        while not self._stop.is_set():
            code = await child.run(start_seconds=self._plan.start_seconds)
            if self._stop.is_set():
                if code not in (0, -signal.SIGTERM):  # the latter: told before it could listen
                    self._bad_ends.append(child.spec.name)
                return
            pause = policy.died(ready_seconds=child.ready_seconds())
            self._judge(child, code, policy, pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()
        self._bad_ends.append(child.spec.name)  # it was dead when the server was stopped

    def _judge(self, child: Child, code: int, policy: RestartPolicy, pause: Seconds) -> None:
        """Tell people of a death; give up where another start cannot help."""
        name, failure = child.spec.name, child.failure
        cause = failure.message if failure is not None else _cause(code)
        if failure is not None and child.report is None:
            self._give_up(failure)
        elif policy.is_hopeless:
            self._give_up(
                Failed(
                    f"{name} died {self._plan.restarts.crash_loop_deaths} times before it was "
                    f"ready, at last: {cause}; run with --log-level debug to see more",
                    1,
                )
            )
        else:
            state = "crash_loop: " if policy.is_crash_loop else ""
            self._announcer.trouble(f"{state}{name} died: {cause}; starts again in {pause:g} s")

    def _give_up(self, failure: Failed) -> None:
        self._failure = self._failure or failure
        self._kill.set()
        self._stop.set()

    async def _drain(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """End the gateway, then the engines; kill what does not end in time."""
        gateway, *engines = keepers
        if self._failure is None:
            self._announcer.draining(limit=self._plan.drain_seconds)
        self._gateway.terminate()
        await self._ended([gateway], [self._gateway])
        for child in self._engines:
            child.terminate()
        await self._ended(engines, self._engines)

    async def _ended(
        self, keepers: Iterable[asyncio.Task[None]], children: Sequence[Child]
    ) -> None:
        killed = asyncio.create_task(_set(self._kill))
        waiting = asyncio.create_task(_finished(keepers))
        await asyncio.wait(
            {killed, waiting},
            timeout=self._plan.drain_seconds + KILL_GRACE_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        killed.cancel()
        for child in children:
            if child.is_running:
                if self._failure is None:
                    self._announcer.trouble(f"{child.spec.name} is killed")
                child.kill()
        await waiting


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _finished(tasks: Iterable[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
