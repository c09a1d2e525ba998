"""The supervisor with real children: small scripts that speak its protocol."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headrace.clock import MonotonicClock, wall_time
from headrace.cluster.local import LocalProvisioner, LocalReplica
from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.autoscaler.machine import Autoscaler
from headrace.errors import StartError
from headrace.messages import PoolReplica, PoolReport
from headrace.monitoring.journal import Journal
from headrace.server.controller import Controller
from headrace.server.decisions import Decisions
from headrace.server.gateway_set import GatewayStart
from headrace.server.keeper import KeeperLimits
from headrace.server.process import ChildSpec
from headrace.server.restarts import RestartLimits
from headrace.server.supervisor import Ending, ServerPlan, Supervisor
from headrace.testing.async_test import async_test
from headrace.testing.server_process import children_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.messages import Members
    from headrace.server.provisioner import Place, Provisioner, ReplicaEvents
    from headrace.types import ReplicaId

PRELUDE = """
import json, os, select, signal, sys, time
settings = json.loads(sys.stdin.readline())
def say(**report): print(json.dumps(report), flush=True)
def ready(): say(type="ready", model="m", kv_tokens=64)
def note(text):
    with open(settings["notes"], "a") as notes: notes.write(f"{settings['name']} {text}\\n")
def until_told():
    while not told: select.select([], [], [], 0.01)
told = []
def end(*_): told.append(1)
signal.signal(signal.SIGTERM, end)
note("started")
"""
GOOD = "ready(); until_told(); note('ended')"


class Recorder:
    """An Announcer that remembers, and wakes who waits."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.num_ready = 0
        self.changed = asyncio.Event()

    def progress(self, child: str, text: str) -> None:
        self._add(f"{child}: {text}")

    def ready(self, replicas: Sequence[Place], *, seconds: float) -> None:
        assert seconds >= 0
        assert all(place.kv_tokens == 64 for place in replicas)
        self.num_ready = len(replicas)
        self._add("all ready")

    def draining(self, *, limit: float) -> None:
        self._add(f"ending within {limit:g} s")

    def trouble(self, text: str) -> None:
        self._add(text)

    async def until(self, words: str) -> None:
        while not any(words in line for line in self.lines):
            self.changed.clear()
            await self.changed.wait()

    def _add(self, line: str) -> None:
        self.lines.append(line)
        self.changed.set()


class Gateways:
    """A gateway that reaches every member at once."""

    def __init__(self) -> None:
        self.controller: Controller | None = None

    def send_members(self, members: Members) -> None:
        assert self.controller is not None
        replicas = tuple(
            PoolReplica(
                replica=member.replica,
                outstanding=0,
                prefill_tokens=0,
                kv_used=0.0,
                prefill_rate=0.0,
            )
            for member in members.members
        )
        self.controller.reports.gateway_load(
            PoolReport(
                gateway="g0",
                waiting=0,
                waiting_tokens=0,
                predicted_ttft=None,
                replicas=replicas,
            )
        )


class Links:
    """Remembers which gateways there were, and which are gone."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def open(self, name: str, control: Path) -> None:
        assert control.name == f"{name}.control"
        self.told.append(f"+{name}")

    def close(self, name: str) -> None:
        self.told.append(f"-{name}")


class Server:
    """A supervisor at work in this process, with a controller and local replicas."""

    def __init__(
        self,
        tmp_path: Path,
        gateway: str | Sequence[str],
        *engines: str,
        console: str = "",
        **seconds: float,
    ) -> None:
        self.others = set(children_of(os.getpid()))  # of other tests in this process
        self.notes_path = tmp_path / "notes"
        self.announcer = Recorder()
        self.successors: Sequence[str] = ()
        self.engines = engines
        gateways = (gateway,) if isinstance(gateway, str) else gateway
        self.scripts = gateways
        self.links = Links()
        self.limits = KeeperLimits(
            restarts=RestartLimits(min_seconds=0.01, max_seconds=0.02, crash_loop_deaths=3),
            start_seconds=seconds.get("start_seconds", 10),
            drain_seconds=seconds.get("drain_seconds", 10),
        )
        self.clock = MonotonicClock()
        plan = ServerPlan(
            gateways=len(gateways),
            describe=self._gateway,
            handover_seconds=0.0,
            console=self._spec("console", console) if console else None,
            floor=len(engines),
            limits=self.limits,
        )
        self.supervisor = Supervisor(
            plan,
            announcer=self.announcer,
            links=self.links,
            clock=self.clock,
            begun=self.clock.now(),
        )
        told = Gateways()
        self.controller = told.controller = Controller(
            Autoscaler(AutoscalerConfig()),
            provision=self._provision,
            gateways=told,
            events=self.supervisor,
            decisions=Decisions(Journal(unix_time=wall_time, source="autoscaler"), wall_time),
            drain_limit=10,
            clock=self.clock,
        )
        self.controller.set_range(len(engines), len(engines))
        self.task = asyncio.create_task(self.supervisor.run(self.controller, never()))

    def _provision(self, events: ReplicaEvents) -> Provisioner:
        return LocalProvisioner(
            self._describe,
            events=events,
            progress=self.supervisor,
            limits=self.limits,
            clock=self.clock,
        )

    def _describe(self, replica: ReplicaId) -> LocalReplica:
        number = int(replica.removeprefix("r"))
        spec = self._spec(f"e{number}", self.engines[number])
        return LocalReplica(spec=spec, address=f"/{replica}.sock")

    def _gateway(self, place: int, generation: int) -> GatewayStart:
        """The first of a place is that of its script; successors come from the scripts behind."""
        only = len(self.scripts) == 1 and not generation
        name = f"g{place}-{generation + 1}" if generation else f"g{place}"
        script = self.successors[generation - 1] if generation else self.scripts[place]
        spec = self._spec("gateway" if only else f"gateway {name}", script)
        return GatewayStart(name, Path(f"/{name}.control"), spec)

    def _spec(self, name: str, script: str) -> ChildSpec:
        settings = f'{{"name": "{name}", "notes": "{self.notes_path}"}}'.encode()
        command = (sys.executable, "-S", "-E", "-c", PRELUDE + script)
        return ChildSpec(name=name, command=command, settings=settings)

    @property
    def notes(self) -> list[str]:
        return self.notes_path.read_text().splitlines()

    async def ending(self) -> Ending:
        ending = await self.task
        assert set(children_of(os.getpid())) <= self.others  # not even a zombie
        return ending

    async def note(self, words: str) -> str:
        """Wait for a line of the notes."""
        while True:  # written by other processes
            found = [line for line in self.notes if words in line]
            if found:
                return found[0]
            await asyncio.sleep(0.002)


async def never() -> None:
    await asyncio.Event().wait()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@async_test
async def test_the_gateway_ends_before_the_engines_and_all_is_well(tmp_path: Path):
    server = Server(tmp_path, GOOD, GOOD, GOOD)
    await server.announcer.until("all ready")
    assert server.announcer.num_ready == 2
    terminate()
    assert await server.ending() == Ending(0)
    assert server.announcer.lines[-1] == "ending within 10 s"
    ends = [line for line in server.notes if line.endswith("ended")]
    assert ends[0] == "gateway ended"
    assert sorted(ends[1:]) == ["e0 ended", "e1 ended"]


@async_test
async def test_progress_is_passed_on(tmp_path: Path):
    server = Server(tmp_path, GOOD, "say(type='progress', text='repacking'); " + GOOD)
    await server.announcer.until("e0: repacking")
    await server.announcer.until("all ready")
    terminate()
    await server.ending()


@async_test
async def test_what_is_no_report_is_passed_over(tmp_path: Path):
    server = Server(tmp_path, GOOD, "print('hello'); print('{}'); " + GOOD)
    await server.announcer.until("all ready")
    terminate()
    assert await server.ending() == Ending(0)


@async_test
async def test_a_child_that_dies_in_service_is_started_again(tmp_path: Path):
    once = """
if not os.path.exists(settings["notes"] + ".died"):
    open(settings["notes"] + ".died", "w").close()
    ready(); os.kill(os.getpid(), signal.SIGKILL)
"""
    server = Server(tmp_path, GOOD, GOOD, once + "note('is back'); " + GOOD)
    await server.announcer.until("e1 died: signal SIGKILL; starts again in 0.01 s")
    await server.note("e1 is back")
    await server.announcer.until("all ready")
    terminate()
    assert await server.ending() == Ending(0)
    assert server.notes.count("e1 started") == 2


@async_test
async def test_a_child_that_says_why_it_cannot_start_ends_the_server_with_its_words(
    tmp_path: Path,
):
    fails = "say(type='failed', message='x.gguf: damaged', exit_code=2); sys.exit(2)"
    server = Server(tmp_path, GOOD, fails)
    assert await server.ending() == Ending(2, "x.gguf: damaged")


@async_test
async def test_a_child_that_dies_again_and_again_before_it_is_ready_ends_the_server(
    tmp_path: Path,
):
    server = Server(tmp_path, GOOD, GOOD, "sys.exit(7)")
    ending = await server.ending()
    assert ending.exit_code == 1
    assert "e1 died 3 times before it was ready, at last: exit code 7" in ending.message
    assert server.notes.count("e1 started") == 3


@async_test
async def test_a_child_that_was_ready_is_started_for_ever_and_called_a_crash_loop(tmp_path: Path):
    server = Server(tmp_path, GOOD, GOOD, "ready(); sys.exit(7)")
    await server.announcer.until("crash_loop: e1 died: exit code 7")
    assert not server.task.done()
    terminate()
    ending = await server.ending()
    assert ending.exit_code == 1  # it was dead, or died, when the server was told to end


@async_test
async def test_a_child_that_is_not_ready_in_time_is_killed(tmp_path: Path):
    server = Server(tmp_path, GOOD, "until_told()", start_seconds=0.3)
    ending = await server.ending()
    assert ending == Ending(1, "e0 was not ready within 0.3 s")


@async_test
async def test_a_second_signal_kills_what_does_not_end(tmp_path: Path):
    stubborn = (
        "signal.signal(signal.SIGTERM, lambda *_: note('told')); ready()\nwhile 1: time.sleep(1)"
    )
    server = Server(tmp_path, stubborn, GOOD)
    await server.announcer.until("all ready")
    terminate()
    await server.note("gateway told")
    terminate()
    ending = await server.ending()
    assert ending.exit_code == 1
    assert "gateway is killed" in server.announcer.lines


@async_test
async def test_what_does_not_end_within_the_drain_limit_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("headrace.server.keeper.KILL_GRACE_SECONDS", 0.05)
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready()\nwhile 1: time.sleep(1)"
    server = Server(tmp_path, GOOD, stubborn, drain_seconds=0.05)
    await server.announcer.until("all ready")
    terminate()
    assert (await server.ending()).exit_code == 1
    assert "gateway ended" in server.notes


@async_test
async def test_a_program_that_is_not_there_ends_the_server_with_its_name(tmp_path: Path):
    server = Server(tmp_path, GOOD, GOOD)
    server.engines = ()
    missing = ChildSpec(name="e0", command=("/no/such/engine",), settings=b"{}")
    server._describe = lambda replica: LocalReplica(spec=missing, address="")
    server.controller.provisioner = server._provision(server.controller)
    ending = await server.ending()
    assert ending == Ending(1, "e0 cannot be started: No such file or directory")


@async_test
async def test_a_console_that_cannot_start_is_told_and_left_out(tmp_path: Path):
    fails = "say(type='failed', message='the page is missing', exit_code=1); sys.exit(1)"
    server = Server(tmp_path, GOOD, GOOD, console=fails)
    await server.announcer.until("there is no console: the page is missing")
    await server.announcer.until("all ready")
    terminate()
    ending = await server.ending()
    assert server.notes.count("console started") == 1
    assert ending.exit_code == 0


@async_test
async def test_a_replica_that_cannot_start_later_is_tried_on_while_others_serve(tmp_path: Path):
    fails = "say(type='failed', message='no memory', exit_code=1); sys.exit(1)"
    server = Server(tmp_path, GOOD, GOOD)
    await server.announcer.until("all ready")
    server.engines = (GOOD, fails)
    server.controller.set_range(2, 2)
    await server.announcer.until("crash_loop: e1 died: no memory")
    places = server.controller.provisioner.places()
    assert [place.is_crash_loop for place in places.values()] == [False, True]
    assert not server.task.done()
    terminate()
    assert (await server.ending()).message == "e1 did not end well"


@async_test
async def test_grandchildren_of_a_dead_child_are_ended_too(tmp_path: Path):
    forks = """
if os.fork() == 0:
    note(f"pid {os.getpid()}")
    time.sleep(60)
note(f"is {os.getpid()}"); ready(); until_told()
"""
    server = Server(tmp_path, GOOD, forks)
    await server.announcer.until("all ready")
    pid = int((await server.note("pid")).split()[-1])
    os.kill(int((await server.note("e0 is")).split()[-1]), signal.SIGKILL)
    await server.announcer.until("e0 died: signal SIGKILL")
    terminate()
    await server.ending()
    for _ in range(1000):
        if not alive(pid):
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"process {pid} lives on")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


HANDED = GOOD.replace("until_told()", "signal.signal(signal.SIGUSR2, end); until_told()")


@async_test
async def test_several_gateways_end_together_and_before_the_engines(tmp_path: Path):
    server = Server(tmp_path, (GOOD, GOOD), GOOD)
    await server.announcer.until("all ready")
    terminate()
    assert await server.ending() == Ending(0)
    ends = [line for line in server.notes if line.endswith("ended")]
    assert sorted(ends[:2]) == ["gateway g0 ended", "gateway g1 ended"]
    assert ends[2] == "e0 ended"


@async_test
async def test_a_successor_is_ready_before_its_predecessor_is_told_to_leave(tmp_path: Path):
    server = Server(tmp_path, (HANDED, HANDED), GOOD)
    server.successors = (HANDED, HANDED)
    await server.announcer.until("all ready")
    gateways = server.supervisor.gateways
    for place in (0, 1):
        await gateways.replace(place)
    assert gateways.names == ["g0-2", "g1-3"]
    assert server.links.told == ["+g0", "+g1", "+g0-2", "-g0", "+g1-3", "-g1"]
    notes = server.notes
    assert notes.index("gateway g0-2 started") < notes.index("gateway g0 ended")
    terminate()
    assert await server.ending() == Ending(0)
    assert not any("died" in line for line in server.announcer.lines)


@async_test
async def test_a_successor_that_does_not_start_is_given_up_and_the_old_gateway_stays(
    tmp_path: Path,
):
    server = Server(tmp_path, HANDED, GOOD)
    server.successors = ("sys.exit(3)",)
    await server.announcer.until("all ready")
    with pytest.raises(StartError, match="gateway g0-2 did not become ready; g0 stays"):
        await server.supervisor.gateways.replace(0)
    assert server.supervisor.gateways.names == ["g0"]
    assert "gateway ended" not in server.notes
    terminate()
    assert await server.ending() == Ending(0)


@async_test
async def test_the_server_may_end_while_a_gateway_is_replaced(tmp_path: Path):
    server = Server(tmp_path, HANDED, GOOD)
    server.successors = ("until_told(); note('ended')",)  # never ready
    await server.announcer.until("all ready")
    replacing = asyncio.create_task(server.supervisor.gateways.replace(0))
    await server.note("gateway g0-2 started")
    terminate()
    await server.ending()
    with pytest.raises(StartError):
        await replacing
