"""Plays the story: clients, a look at the server four times a second, a kill and a drain."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from show import Look

from headrace.clock import MonotonicClock, wall_time
from headrace.monitoring.shapes import JournalEntry, ServerState
from headrace.testing.server_process import read_journal
from headrace.testing.streams import Crowd, get, metric

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from show import Screen
    from story import Story

    from headrace.monitoring.shapes import ReplicaRow
    from headrace.testing.server_process import ServerProcess
    from headrace.testing.streams import Heard
    from headrace.types import Seconds

LOOK_S = 0.25
RATE_LOOKS = 16
"""Looks over which tokens a second are counted."""

WAIT_LOOKS = 40
"""Looks that a kill or drain waits for a second replica, so that streams have where to go."""

COMMAND_S = 20.0
MOVED = "go_on"
SHOWN = {
    "start": ("+ {} starts: {}", "scale"),
    "ready": ("+ {} is {}", "scale"),
    "drain": ("- {} drains: {}", "scale"),
    "stop": ("- {} stops: {}", "scale"),
    "died": ("! {1}", "died"),
}
"""Journal entries that are shown, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, for the timeline."""

    at: Seconds
    kind: str
    text: str


@dataclass(slots=True, kw_only=True)
class Played:
    """What the story left behind."""

    heard: Sequence[Heard]
    events: list[Event] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)  # request -> why it left its replica
    num_moves: int = 0
    struck_at: list[Seconds] = field(default_factory=list)  # on the clients' clock
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0


class Player:
    """Owns the clients of one running server."""

    def __init__(
        self,
        *,
        server: ServerProcess,
        directory: Path,
        story: Story,
        screen: Screen,
        rng: random.Random,
        ceiling: int,
        shown_from: Seconds,
    ) -> None:
        self._server = server
        self._directory = directory
        self._story = story
        self._screen = screen
        self._rng = rng
        self._ceiling = ceiling
        self._shown_from = shown_from  # unix time: what came before it is no part of the story
        self._clock = MonotonicClock()
        self._crowd = Crowd(server.port, self._clock)
        self._played = Played(heard=self._crowd.heard)
        self._begun = (self._clock.now(), wall_time())
        self._taken = 0  # entries of the journal that were looked at

    async def play(self) -> Played:
        """Play it to the end: until the last answer has ended and the pool is calm."""
        self._begun = (self._clock.now(), wall_time())
        watching = asyncio.create_task(self._watch())
        acting = asyncio.create_task(self._act())
        try:
            await self._crowd.open_loop(self._story.arrivals(self._rng))
            await asyncio.sleep(max(0.0, self._story.seconds - self._now()))
            await acting
        finally:
            for task in (watching, acting):
                task.cancel()
            self._screen.end_live()
        self._take_journal()
        await self._count_cache_hits()
        return self._played

    def _now(self) -> Seconds:
        return self._clock.now() - self._begun[0]

    async def _watch(self) -> None:
        tokens = deque([(self._now(), 0)], maxlen=RATE_LOOKS)
        while True:
            await asyncio.sleep(LOOK_S)
            self._take_journal()
            with suppress(OSError, TimeoutError):
                _, figures = await get(self._server.port, "/metrics")
                heard = self._crowd.heard
                tokens.append((self._now(), sum(len(one.times) for one in heard)))
                (since, before), (until, after) = tokens[0], tokens[-1]
                look = Look(
                    at=self._now(),
                    rate=self._story.rate(self._now()),
                    ready=int(metric(figures, "headrace_replica_ready")),
                    ceiling=self._ceiling,
                    running=sum(one.ended_at is None for one in heard),
                    done=sum(one.is_whole for one in heard),
                    failed=sum(one.has_failed for one in heard),
                    moved=self._played.num_moves,
                    tokens_per_s=(after - before) / max(until - since, 1e-9),
                )
                self._played.looks.append(look)
                self._screen.live(look)

    async def _act(self) -> None:
        await self._until(self._story.kill)
        await self._kill()
        await self._until(self._story.drain)
        await self._drain()

    async def _kill(self) -> None:
        rows = [row for row in await self._ready_replicas() if row.pid]
        victim = max(rows, key=lambda row: row.outstanding)
        self._strike(
            "kill", f"$ kill -9 {victim.pid}    # {victim.replica}, {_streams(victim)} on it"
        )
        os.kill(victim.pid, signal.SIGKILL)

    async def _drain(self) -> None:
        victim = max(await self._ready_replicas(), key=lambda row: row.outstanding)
        self._strike("order", f"$ headrace drain {victim.replica}    # {_streams(victim)} on it")
        await self._headrace("drain", victim.replica)

    async def _until(self, share: float) -> None:
        """Wait for a time of the story, and then (a while) for two replicas that are ready."""
        await asyncio.sleep(max(0.0, share * self._story.seconds - self._now()))
        for _ in range(WAIT_LOOKS):
            if self._played.looks and self._played.looks[-1].ready >= 2:
                return
            await asyncio.sleep(LOOK_S)

    async def _ready_replicas(self) -> list[ReplicaRow]:
        state = msgspec.json.decode(await self._headrace("ps", "--json"), type=ServerState)
        return [row for row in state.replicas if row.state == "ready"]

    async def _headrace(self, *words: str) -> bytes:
        """Run a command as an operator does. Raises RuntimeError with what it says."""
        admin = str(self._directory / "admin.sock")
        done = await asyncio.to_thread(
            subprocess.run,
            (sys.executable, "-m", "headrace", *words, "--admin", admin),
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"headrace {' '.join(words)}: {done.stderr.decode().strip()}")
        return done.stdout

    def _strike(self, kind: str, text: str) -> None:
        self._played.struck_at.append(self._clock.now())
        self._add(Event(at=self._now(), kind=kind, text=text), "died")

    def _add(self, event: Event, style: str) -> None:
        self._played.events.append(event)
        self._screen.say(f"  {int(event.at) // 60}:{int(event.at) % 60:02d}  {event.text}", style)

    def _take_journal(self) -> None:
        """Take what is new in the journal."""
        entries = read_journal(self._directory / "journal.jsonl")
        moves = 0
        for entry in entries[self._taken :]:
            if entry.kind == MOVED:
                moves += 1
                self._played.moved[entry.subject.partition("#")[0]] = entry.reason
            elif entry.kind in SHOWN and entry.unix >= self._shown_from:
                self._add(self._event(entry), SHOWN[entry.kind][1])
        self._taken = len(entries)
        if moves:
            self._played.num_moves += moves
            text = f"> {moves} request{'s go' if moves > 1 else ' goes'} on elsewhere"
            self._add(Event(at=self._now(), kind=MOVED, text=text), "moved")

    def _event(self, entry: JournalEntry) -> Event:
        at = max(0.0, entry.unix - self._begun[1])
        text = SHOWN[entry.kind][0].format(entry.subject, entry.reason)
        return Event(at=at, kind=entry.kind, text=text)

    async def _count_cache_hits(self) -> None:
        _, figures = await get(self._server.port, "/metrics")
        self._played.prompt_tokens = metric(figures, "headrace_prompt_tokens_total")
        self._played.cached_tokens = metric(figures, "headrace_cached_prompt_tokens_total")


def _streams(row: ReplicaRow) -> str:
    return f"{row.outstanding} request{'' if row.outstanding == 1 else 's'}"
