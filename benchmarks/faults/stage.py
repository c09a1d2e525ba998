"""One run: a server of its own, clients at work, and the clock of what happens to it."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec
from census import Census, take_census
from foreign import fake_replica

from headrace.clock import MonotonicClock, wall_time
from headrace.monitoring.shapes import ServerState
from headrace.server.admin.client import AdminClient
from headrace.testing.chaos import FaultProxy
from headrace.testing.chaos.endpoint import taken_over
from headrace.testing.server_process import (
    ServerProcess,
    read_journal,
    running_server,
    wait_until,
)
from headrace.testing.streams import Asked, Crowd, Heard, get, metric

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from headrace.monitoring.shapes import JournalEntry
    from headrace.types import Seconds

WORDS = (
    *("river", "mill", "wheel", "water", "stone", "bridge", "light", "morning", "tower", "field"),
    *("winter", "harvest", "channel", "current", "ferry", "island", "meadow", "harbour", "orchard"),
)
JOURNAL = "journal.jsonl"
ADMIN = "admin.sock"
POLL_S = 0.02
SETTLE_S = 10.0
"""What a server gets to become quiet."""

RECOVERY_S = 20.0
"""What a lost replica gets to come back."""


NOTICE_S = 8.0
"""Within this a dead replica is missed, or it was back so soon that nobody saw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a run is. ``speed`` multiplies the simulated model's time."""

    speed: float = 1.0
    output: tuple[int, int] = (30, 60)  # tokens, from and to
    before_s: Seconds = 0.3
    after_s: Seconds = 0.2
    silent_after_s: Seconds = 3.0
    stopped_s: Seconds = 4.0  # how long a hung replica hangs
    slow_s: Seconds = 4.0  # how long a slow one is slow
    restart_s: Seconds = 0.2
    leavers: int = 16


QUICK = Pace(
    output=(25, 45), slow_s=2.0, silent_after_s=0.8, stopped_s=1.2, restart_s=0.05, leavers=10
)


class _Replica(msgspec.Struct):
    replica: str
    ok: bool


class _Ready(msgspec.Struct):
    replicas: list[_Replica]


@dataclass(slots=True, kw_only=True)
class Marks:
    """When what happened. ``healed_at``: when a replica that hung was let go."""

    fault_at: Seconds = 0.0
    fault_unix: Seconds = 0.0
    healed_at: Seconds | None = None
    recovered_at: Seconds | None = None
    exit_code: int | None = None
    notes: dict[str, float] = field(default_factory=dict)  # further figures of this fault


@dataclass(slots=True, kw_only=True)
class Stage:
    """A running server under load. Times are of this process's monotonic clock."""

    server: ServerProcess
    directory: Path
    rng: random.Random
    pace: Pace
    clients: int
    replicas: int
    crowd: Crowd
    proxies: Sequence[FaultProxy] = ()
    clock: MonotonicClock = field(default_factory=MonotonicClock)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    marks: Marks = field(default_factory=Marks)
    begun_unix: Seconds = field(default_factory=wall_time)
    recovery: asyncio.Task[None] | None = None

    def next_asked(self) -> Asked:
        """Draw a request: short prompts, some alike, a quarter not streamed."""
        rng = self.rng
        shared = " ".join(WORDS[: rng.choice((0, 0, 12, 20))])
        own = " ".join(rng.choices(WORDS, k=rng.randint(3, 12)))
        return Asked(
            prompt=f"{shared} {own}",
            max_tokens=rng.randint(*self.pace.output),
            temperature=rng.choice((0.0, 0.8)),
            seed=rng.getrandbits(31),
            chat=rng.random() < 0.5,
            stream=rng.random() < 0.75,
        )

    def long_asked(self, *, stream: bool = True) -> Asked:
        """Draw a request whose prompt takes a while."""
        own = " ".join(self.rng.choices(WORDS, k=120))
        return Asked(prompt=own, max_tokens=self.pace.output[0], stream=stream)

    def strike(self) -> asyncio.Task[None]:
        """Say that the fault happens now; return what waits until the server is whole again."""
        self.marks.fault_at, self.marks.fault_unix = self.clock.now(), wall_time()
        self.recovery = asyncio.create_task(self.watch_recovery())
        return self.recovery

    @property
    def admin(self) -> Path:
        """The admin socket."""
        return self.directory.parent / ADMIN

    async def replica_names(self) -> list[str]:
        """Return the names of the replicas that take requests."""
        _, text = await get(self.server.port, "/ready")
        return [each.replica for each in _replicas_in(text) if each.ok]

    def pids(self) -> list[tuple[str, int]]:
        """Return names and pids of the replicas that take requests."""
        rows = AdminClient(self.admin).get("/state", ServerState).replicas
        return [(row.replica, row.pid) for row in rows if row.state == "ready"]

    def engines(self) -> list[int]:
        """Return the pids of the engines."""
        children = self.server.children()
        return sorted(pid for name, pid in children.items() if name.startswith("engine"))

    async def figures(self) -> str:
        """Return /metrics, empty while nobody answers."""
        with suppress(OSError, TimeoutError):
            status, text = await get(self.server.port, "/metrics")
            if status == 200:
                return text
        return ""

    async def until(
        self,
        condition: Callable[[str], bool],
        *,
        seconds: Seconds = SETTLE_S,
        poll: Seconds = POLL_S,
    ) -> bool:
        """Wait until /metrics fulfils a condition; return whether it does in time."""
        deadline = self.clock.now() + seconds
        while not ((text := await self.figures()) and condition(text)):
            if self.clock.now() > deadline:
                return False
            await asyncio.sleep(poll)
        return True

    async def watch_recovery(self) -> None:
        """Wait until a replica is missed (or was back before anybody saw), then until all serve."""
        ready = partial(metric, name="headrace_replica_state", state="ready")
        await self.until(lambda text: ready(text) < self.replicas, seconds=NOTICE_S)
        if await self.until(lambda text: ready(text) >= self.replicas, seconds=RECOVERY_S):
            self.marks.recovered_at = self.clock.now()

    async def until_quiet(self) -> bool:
        """Wait until nothing runs and no KV block is held."""
        return await self.until(lambda text: in_use(text) == 0)

    def census(self) -> Census:
        """Count what the server holds."""
        return take_census(self.server.pid, self.directory)

    def journal(self) -> list[JournalEntry]:
        """Return the decisions made so far, oldest first."""
        return read_journal(self.directory.parent / JOURNAL)

    def running_at_fault(self) -> list[Heard]:
        """Return the streams that had begun and not ended when the fault struck."""
        at = self.marks.fault_at
        return [
            heard
            for heard in self.crowd.heard
            if heard.asked.stream
            and heard.started_at < at
            and (heard.ended_at is None or heard.ended_at > at)
        ]


def _replicas_in(ready: str) -> list[_Replica]:
    return msgspec.json.decode(ready, type=_Ready).replicas


def in_use(exposition: str) -> float:
    """Return what is held: running generations, sequences of engines, KV blocks."""
    return (
        metric(exposition, "headrace_generations_running")
        + metric(exposition, "headrace_engine_running")
        + metric(exposition, "headrace_engine_waiting")
        + metric(exposition, "headrace_kv_blocks", state="used")
    )


def is_idle(exposition: str) -> bool:
    """Whether no engine has a sequence."""
    running = metric(exposition, "headrace_engine_running")
    return running + metric(exposition, "headrace_engine_waiting") == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A running server, and the pace it was set up for."""

    server: ServerProcess
    directory: Path
    replicas: int
    pace: Pace

    def stage(self, rng: random.Random, clients: int) -> Stage:
        """Return a stage for one run."""
        return Stage(
            server=self.server,
            directory=self.directory,
            rng=rng,
            pace=self.pace,
            clients=clients,
            replicas=self.replicas,
            crowd=Crowd(self.server.port),
        )


@contextmanager
def opened_place(
    model: str,
    *,
    pace: Pace,
    replicas: int,
    settings: Mapping[str, str],
    fakes: Sequence[Sequence[str]] = (),
) -> Iterator[Place]:
    """Start a server in a directory of its own; it is gone afterwards, with its children.

    Where there are ``fakes`` (the flags of each), it is a gateway before them.
    """
    with TemporaryDirectory(prefix="faults-") as name:
        home = Path(name) / "home"
        home.mkdir()
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "XDG_"))},
            "HOME": str(home),
            "TMPDIR": str(home),
            "HEADRACE_ENGINE_SIMULATED_SPEED": str(pace.speed),
            "HEADRACE_ENGINE_REPORT_SECONDS": "0.02",
            "HEADRACE_SERVER_RESTART_MIN_SECONDS": str(pace.restart_s),
            "HEADRACE_SERVER_RESTART_MAX_SECONDS": str(pace.restart_s),  # deaths are no sign here
            "HEADRACE_SERVER_CRASH_LOOP_DEATHS": "1000",
            "HEADRACE_SERVER_JOURNAL": str(Path(name) / JOURNAL),
            "HEADRACE_SERVER_ADMIN": str(Path(name) / ADMIN),
            "HEADRACE_GATEWAY_SILENT_AFTER": str(pace.silent_after_s),
            **settings,
        }
        with ExitStack() as stack:
            if fakes:
                urls = [stack.enter_context(fake_replica(*script)) for script in fakes]
                command, arguments = "gateway", [w for url in urls for w in ("--replica", url)]
            else:
                command, arguments = "serve", [model, "--replicas", str(replicas)]
            server = stack.enter_context(
                running_server(*arguments, environment=environment, command=command)
            )
            place = Place(server=server, directory=home, replicas=replicas, pace=pace)
            wait_until(partial(_is_whole, place, len(fakes) or replicas))
            yield place


def _is_whole(place: Place, replicas: int) -> bool:
    """Whether all replicas take requests: a gateway is up before it has heard of foreign ones."""
    _, text = asyncio.run(get(place.server.port, "/ready"))
    return len([each for each in _replicas_in(text) if each.ok]) == replicas


@asynccontextmanager
async def proxied(stage: Stage) -> AsyncIterator[None]:
    """Step between the gateway and its replicas.

    Their sockets are taken over, and the gateway is killed once, so that it connects anew.
    """
    sockets = sorted(stage.directory.glob("headrace-*/r*.sock"))
    if len(sockets) != stage.replicas:
        raise RuntimeError(f"{len(sockets)} sockets of {stage.replicas} replicas")
    with ExitStack() as stack:
        for path in sockets:
            ours, theirs = stack.enter_context(taken_over(path))
            proxy = FaultProxy(upstream=theirs, clock=stage.clock)
            await proxy.start(ours)
            stage.proxies = (*stage.proxies, proxy)
        os.kill(stage.server.children()["gateway"], signal.SIGKILL)
        try:
            ready = partial(metric, name="headrace_replica_state", state="ready")
            if not await stage.until(lambda text: ready(text) >= stage.replicas):
                raise RuntimeError("the gateway did not come back")
            if not all(proxy.num_connections for proxy in stage.proxies):
                raise RuntimeError("the gateway went round the proxies")
            yield
        finally:
            for proxy in stage.proxies:
                await proxy.close()
