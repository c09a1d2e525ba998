"""Keeper: one child process that is started again when it dies, until it is told to end.

    run --> starting --Ready--> serving --end()--> SIGTERM --grace--> SIGKILL --> run returns
              ^  death: a pause that doubles  |
              '-------------------------------'

It knows nothing of what the child does, and leaves to its owner what a death means.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, assert_never

import msgspec

from headrace.server.child import Failed, Progress, Ready, Report, decode_report
from headrace.server.process import ChildProcess, ChildSpec
from headrace.server.restarts import RestartLimits, RestartPolicy

if TYPE_CHECKING:
    from headrace.clock import Clock
    from headrace.types import Seconds

KILL_GRACE_SECONDS = 5.0
"""After its own drain limit a child has this long to end before it is killed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperLimits:
    """How long a child may take to start and to end, and when it is started again."""

    restarts: RestartLimits
    start_seconds: Seconds
    drain_seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A child ended that was not told to; it starts again in ``pause`` seconds.

    ``hopeless``: it never was ready, and another start will hardly help.
    """

    child: str
    cause: str
    pause: Seconds
    is_crash_loop: bool
    hopeless: Failed | None

    def __str__(self) -> str:
        state = "crash_loop: " if self.is_crash_loop else ""
        return f"{state}{self.child} died: {self.cause}; starts again in {self.pause:g} s"


class KeeperEvents(Protocol):
    """What a keeper reports. Called on the loop; must not block or raise."""

    def child_progress(self, child: str, text: str) -> None:
        """It is busy with something before it is ready."""
        ...

    def child_ready(self, child: str, report: Ready, seconds: Seconds) -> None:
        """It does its work now, ``seconds`` after its start."""
        ...

    def child_died(self, death: Death) -> None:
        """It ended by itself."""
        ...


class Child:
    """One process at a time, and what it said last. ``report`` outlives the process."""

    def __init__(self, spec: ChildSpec, events: KeeperEvents, clock: Clock) -> None:
        self.name = spec.name
        self.report: Ready | None = None
        self.failure: Failed | None = None
        self._spec = spec
        self._events = events
        self._clock = clock
        self._process: ChildProcess | None = None
        self._late: asyncio.TimerHandle | None = None
        self._begun: Seconds = 0.0
        self._ready_at: Seconds | None = None

    @property
    def pid(self) -> int | None:
        """None while there is no process."""
        return None if self._process is None else self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether the process does its work."""
        return self._process is not None and self._ready_at is not None

    def ready_seconds(self) -> Seconds | None:
        """How long the process has been ready; None if it never was."""
        return None if self._ready_at is None else self._clock.now() - self._ready_at

    async def run(self, *, start_seconds: Seconds) -> int:
        """Start the process and wait for its end; return its exit code (negative: a signal)."""
        self.failure = None
        self._ready_at = None
        self._begun = self._clock.now()
        loop = asyncio.get_running_loop()
        try:
            self._process = ChildProcess(self._spec, self._take)
        except OSError as error:  # no memory, no process number, no such program
            self.failure = Failed(f"{self.name} cannot be started: {error.strerror}", 1)
            return self.failure.exit_code
        self._late = loop.call_later(start_seconds, self._too_late, start_seconds)
        try:
            return await self._process.ended()
        finally:
            self._late.cancel()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if there is one, and all that it started."""
        if self._process is not None:
            self._process.signal(number)

    def _take(self, line: bytes) -> None:
        try:
            report: Report = decode_report(line)
        except msgspec.MsgspecError as error:
            _log.error("report of %s: %s", self.name, error)
            return
        match report:
            case Progress():
                self._events.child_progress(self.name, report.text)
            case Ready():
                self._take_ready(report)
            case Failed():
                self.failure = report
            case _:
                assert_never(report)

    def _take_ready(self, report: Ready) -> None:
        if self._late is not None:
            self._late.cancel()
        self.report = report
        self._ready_at = self._clock.now()
        self._events.child_ready(self.name, report, self._ready_at - self._begun)

    def _too_late(self, seconds: Seconds) -> None:
        self.failure = Failed(f"{self.name} was not ready within {seconds:g} s", 1)
        self.signal(signal.SIGKILL)


class Keeper:
    """Keeps one child."""

    def __init__(
        self, spec: ChildSpec, *, limits: KeeperLimits, events: KeeperEvents, clock: Clock
    ) -> None:
        self.child = Child(spec, events, clock)
        self.num_deaths = 0
        self._limits = limits
        self._events = events
        self._policy = RestartPolicy(limits.restarts)
        self._ending = asyncio.Event()
        self._grace: asyncio.TimerHandle | None = None

    @property
    def is_crash_loop(self) -> bool:
        """Whether it dies again and again, and is not well now."""
        return self._policy.is_crash_loop and not self.child.is_ready

    async def run(self) -> bool:
        """Keep the child until ``end``; return whether it ended then, and as it should."""
        child = self.child
        while not self._ending.is_set():
            code = await child.run(start_seconds=self._limits.start_seconds)
            if self._ending.is_set():
                if self._grace is not None:
                    self._grace.cancel()
                is_well = self.num_deaths == 0 or child.ready_seconds() is not None
                return is_well and code in (0, -signal.SIGTERM)  # told before it could listen
            self.num_deaths += 1
            pause = self._policy.died(ready_seconds=child.ready_seconds())
            self._events.child_died(self._death(code, pause))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()
        return False  # it was dead when it was told to end

    def end(self, number: signal.Signals = signal.SIGTERM, *, patience: Seconds = 0.0) -> None:
        """Ask the child to end, and kill it when it takes ``patience`` longer than allowed."""
        if not self._ending.is_set():
            self._ending.set()
            seconds = self._limits.drain_seconds + patience + KILL_GRACE_SECONDS
            self._grace = asyncio.get_running_loop().call_later(seconds, self.kill)
            self.child.signal(number)

    def kill(self) -> None:
        """End the child and whatever it started, now and for good."""
        self._ending.set()
        self.child.signal(signal.SIGKILL)

    def _death(self, code: int, pause: Seconds) -> Death:
        name, failure = self.child.name, self.child.failure
        cause = failure.message if failure is not None else _cause(code)
        hopeless: Failed | None = None
        if failure is not None and self.child.report is None:
            hopeless = failure
        elif self._policy.is_hopeless:
            hopeless = Failed(
                f"{name} died {self._limits.restarts.crash_loop_deaths} times before it was ready, "
                f"at last: {cause}; run with --log-level debug to see more",
                1,
            )
        return Death(
            child=name,
            cause=cause,
            pause=pause,
            is_crash_loop=self._policy.is_crash_loop,
            hopeless=hopeless,
        )


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
