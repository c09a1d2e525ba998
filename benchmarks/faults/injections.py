"""The faults: what is done to a server under load, one coroutine each.

Names are those of the issue's list. Each returns when the fault is over and the server may be
expected to be whole again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stage import POLL_S, is_idle

from headrace.cli.main import COMMANDS
from headrace.clock import wall_time
from headrace.testing.chaos import NO_FAULTS, Faults, Towards

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from stage import Stage

    from headrace.testing.streams import Asked, Heard

COMMAND_S = 30.0
SLOW_TIMES = 20
SLOW_PERIOD_S = 0.1
RESTART = "restart"
"""The command that starts all replicas or gateways anew, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """What is switched off to show what it does."""

    name: str
    settings: Mapping[str, str]


NO_MIGRATION = Ablation(name="migration off", settings={"HEADRACE_GATEWAY_MAX_MIGRATIONS": "0"})
NO_RETRIES = Ablation(name="retries off", settings={"HEADRACE_GATEWAY_MAX_RETRIES": "0"})
ROUND_ROBIN = Ablation(name="round robin", settings={"HEADRACE_GATEWAY_POLICY": "round_robin"})
NO_PATIENCE = Ablation(name="drain limit 0", settings={"HEADRACE_SERVER_DRAIN_SECONDS": "0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An injection, and the server that it is done to."""

    name: str
    title: str
    inject: Callable[[Stage], Awaitable[None]]
    replicas: int = 3
    survives: bool = True  # no accepted request may fail
    ends: bool = False  # the server itself ends
    loses: bool = True  # a replica, for a while
    strikes: bool = True  # at one moment, from which detection counts
    proxied: bool = False  # a fault proxy stands between gateway and each replica
    ablation: Ablation | None = NO_MIGRATION
    settings: Mapping[str, str] = field(default_factory=dict)
    fakes: Sequence[Sequence[str]] = ()  # flags of foreign replicas; none: replicas of ours

    @property
    def leaves_all_well(self) -> bool:
        """Whether another seed may be played on the same server."""
        return not (self.ends or self.fakes or self.proxied)


async def kill_before_first_token(stage: Stage) -> None:
    """F1: SIGKILL a replica while long prompts are being computed."""
    asks = [asyncio.create_task(stage.crowd.ask(stage.long_asked())) for _ in range(6)]
    await asyncio.sleep(stage.rng.uniform(0.05, 0.15) * stage.pace.speed)
    _kill(stage, signal.SIGKILL)
    await asyncio.gather(*asks)


async def kill_mid_stream(stage: Stage) -> None:
    """F2, F3: SIGKILL a replica when a fresh stream has some tokens."""
    await _until_mid_stream(stage)
    _kill(stage, signal.SIGKILL)


async def hang_mid_stream(stage: Stage) -> None:
    """F4: SIGSTOP a replica long enough to be noticed, then SIGCONT: it says stale things."""
    await _until_mid_stream(stage)
    victim = _kill(stage, signal.SIGSTOP)
    try:
        await asyncio.sleep(stage.pace.stopped_s)
    finally:
        os.kill(victim, signal.SIGCONT)
    stage.marks.healed_at = stage.clock.now()


async def slow_down(stage: Stage) -> None:
    """F5: a replica runs at a twentieth of its speed for a while: SIGSTOP and SIGCONT by turns."""
    await _until_mid_stream(stage)
    stage.strike()
    replica, pid = stage.rng.choice(await asyncio.to_thread(stage.pids))
    end = stage.clock.now() + stage.pace.slow_s
    try:
        while stage.clock.now() < end:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(SLOW_PERIOD_S * (1 - 1 / SLOW_TIMES))
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(SLOW_PERIOD_S / SLOW_TIMES)
    finally:
        os.kill(pid, signal.SIGCONT)
    stage.marks.notes["share_of_slow"] = _share_sent(stage, replica, since=stage.pace.slow_s / 2)


def _share_sent(stage: Stage, replica: str, *, since: float) -> float:
    """Return which share of the requests of the last ``since`` seconds went to a replica."""
    begun = wall_time() - since
    sent = [e.reason for e in stage.journal() if e.kind == "dispatch" and e.unix >= begun]
    return sum(reason.startswith(f"to {replica}:") for reason in sent) / max(1, len(sent))


async def vanish_mid_stream(stage: Stage) -> None:
    """F6: all between the gateway and a replica is swallowed for a while, without a reset."""
    await _until_mid_stream(stage)
    proxy = stage.rng.choice(stage.proxies)
    stage.strike()
    proxy.faults = Faults(hang_after=0, towards=Towards.BOTH)
    await asyncio.sleep(stage.pace.stopped_s)
    proxy.faults = NO_FAULTS
    stage.marks.healed_at = stage.clock.now()


async def go_on(stage: Stage) -> None:
    """F8: nothing more to do; one of the foreign replicas cuts every answer off."""
    stage.strike().cancel()
    await asyncio.sleep(stage.pace.before_s)


async def leave(stage: Stage) -> None:
    """F11: clients leave in queue, prefill and decode, of streams and whole answers."""
    stage.strike()
    leavers = []
    for index in range(stage.pace.leavers):
        stream = index % 2 == 0
        asked = stage.next_asked() if index % 3 else stage.long_asked(stream=stream)
        asked = replace(asked, stream=stream, patience=stage.rng.uniform(0.01, 0.6))
        if stream and index % 4:
            asked = replace(asked, patience=None, enough=stage.rng.randint(1, 20))
        leavers.append(asyncio.create_task(stage.crowd.ask(asked)))
        await asyncio.sleep(stage.rng.uniform(0.0, 0.1))
    await asyncio.gather(*leavers)


async def terminate_engine(stage: Stage) -> None:
    """F27: SIGTERM a replica's process, which ends after its drain limit; another takes over."""
    await _until_mid_stream(stage)
    _kill(stage, signal.SIGTERM)


async def drain_replica(stage: Stage) -> None:
    """F27: `headrace drain` with a short limit: another replica starts, long streams move."""
    await _until_mid_stream(stage)
    stage.strike().cancel()  # whole again is when the replica is gone
    await _drain(stage, stage.rng.choice(await stage.replica_names()))
    stage.marks.recovered_at = stage.clock.now()


async def restart_all(stage: Stage) -> None:
    """F28: every replica is replaced under load, one after the other, then every gateway."""
    await _until_mid_stream(stage)
    stage.strike().cancel()
    if RESTART in COMMANDS:
        await _command(stage, RESTART, "replicas")
        await _command(stage, RESTART, "gateways")
    else:
        for name in await stage.replica_names():
            await _drain(stage, name)
    stage.marks.recovered_at = stage.clock.now()


async def _drain(stage: Stage, replica: str) -> None:
    await _command(stage, "drain", replica)
    async with asyncio.timeout(COMMAND_S):
        while not any(e.kind == "gone" and e.subject == replica for e in stage.journal()):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


async def _command(stage: Stage, *words: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        (sys.executable, "-m", "headrace", *words, "--admin", str(stage.admin)),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"headrace {' '.join(words)}: {done.stderr.strip()}")


async def terminate_server(stage: Stage) -> None:
    """F27: SIGTERM the whole server: what it accepted ends well, new requests get 503."""
    await _until_mid_stream(stage)
    stage.strike()
    stage.server.send(signal.SIGTERM)
    stage.marks.exit_code = await asyncio.to_thread(stage.server.wait, 60.0)
    stage.marks.recovered_at = stage.clock.now()


async def time_to_abort(stage: Stage) -> None:
    """Measure, on the quiet server, how long after a client left its engine knows.

    In decode, in prefill, and in an engine's queue behind long requests.
    """
    decoding = replace(stage.long_asked(), max_tokens=200, enough=5)
    prefill = replace(stage.long_asked(), patience=0.1 * stage.pace.speed)
    for name, asked in (("decode", decoding), ("prefill", prefill)):
        for kind, stream in (("stream", True), ("whole", False)):
            now = replace(asked, stream=stream)
            if not stream and asked.enough:
                now = replace(now, enough=None, patience=0.4 * stage.pace.speed)
            stage.marks.notes[f"abort_{name}_{kind}_s"] = await _abort_seconds(stage, now)


async def _abort_seconds(stage: Stage, asked: Asked) -> float:
    await stage.until_quiet()
    await stage.crowd.ask(asked)
    left = stage.clock.now()
    await stage.until(is_idle, poll=0.002)
    return stage.clock.now() - left


def _kill(stage: Stage, number: signal.Signals) -> int:
    victim = stage.rng.choice(stage.engines())
    stage.strike()
    os.kill(victim, number)
    return victim


async def _until_mid_stream(stage: Stage) -> None:
    """Wait until some stream has about 10 tokens and some are left, at a seeded moment."""
    await asyncio.sleep(stage.rng.uniform(0.0, 0.2 * stage.pace.before_s))
    deadline = stage.clock.now() + 10.0

    def is_midway(heard: Heard) -> bool:
        return heard.ended_at is None and 8 <= len(heard.times) <= heard.asked.max_tokens / 2

    while not any(is_midway(heard) for heard in stage.crowd.heard):
        if stage.clock.now() > deadline:
            raise RuntimeError("no stream ever ran")
        await asyncio.sleep(POLL_S / 4)


_FAKE = ("--itl-ms", "20")
_FEW_PLACES = {"HEADRACE_ENGINE_MAX_NUM_SEQS": "2", "HEADRACE_GATEWAY_MAX_OUTSTANDING": "3"}
_SOON = {"HEADRACE_SERVER_DRAIN_SECONDS": "0.2"}
"""A drain limit that streams outlast, so that they must move."""

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            name="F1",
            title="SIGKILL a replica before first tokens",
            inject=kill_before_first_token,
        ),
        Fault(name="F2", title="SIGKILL a replica mid-stream", inject=kill_mid_stream),
        Fault(
            name="F3",
            title="SIGKILL the only replica mid-stream",
            inject=kill_mid_stream,
            replicas=1,
        ),
        Fault(name="F4", title="SIGSTOP a replica mid-stream", inject=hang_mid_stream),
        Fault(
            name="F5",
            title="a replica runs at a twentieth of its speed",
            inject=slow_down,
            loses=False,
            strikes=False,
            ablation=ROUND_ROBIN,
        ),
        Fault(
            name="F6",
            title="the way to a replica swallows everything",
            inject=vanish_mid_stream,
            proxied=True,
        ),
        Fault(
            name="F8",
            title="a foreign replica's answers end before their first token",
            inject=go_on,
            loses=False,
            strikes=False,
            ablation=NO_RETRIES,
            fakes=(_FAKE, _FAKE, (*_FAKE, "--truncate-after", "0")),
        ),
        Fault(
            name="F8b",
            title="a foreign replica's streams end after 10 tokens",
            inject=go_on,
            survives=False,
            loses=False,
            strikes=False,
            ablation=None,
            fakes=(_FAKE, _FAKE, (*_FAKE, "--truncate-after", "10")),
        ),
        Fault(
            name="F11",
            title="clients leave in queue, prefill, decode",
            inject=leave,
            replicas=2,
            loses=False,
            strikes=False,
            ablation=None,
            settings=_FEW_PLACES,
        ),
        Fault(name="F27a", title="SIGTERM a replica", inject=terminate_engine, settings=_SOON),
        Fault(
            name="F27b",
            title="headrace drain",
            inject=drain_replica,
            loses=False,
            strikes=False,
            settings=_SOON,
        ),
        Fault(
            name="F27c",
            title="SIGTERM the server",
            inject=terminate_server,
            ends=True,
            loses=False,
            strikes=False,
            ablation=NO_PATIENCE,
        ),
        Fault(
            name="F28",
            title="rolling restart of all replicas",
            inject=restart_all,
            loses=False,
            strikes=False,
            settings=_SOON,
        ),
    )
}
