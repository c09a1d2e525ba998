"""LocalProvisioner with real processes: small scripts that speak an engine's protocol."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from headrace.clock import MonotonicClock
from headrace.cluster.local import LocalProvisioner, LocalReplica
from headrace.server.keeper import KeeperLimits
from headrace.server.process import ChildSpec
from headrace.server.restarts import RestartLimits
from headrace.testing.async_test import async_test
from headrace.testing.server_process import is_alive
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from headrace.server.child import Failed

R0, R1 = ReplicaId("r0"), ReplicaId("r1")
GOOD = """
import json, signal, sys
sys.stdin.readline()
print(json.dumps({"type": "progress", "text": "loading"}), flush=True)
print(json.dumps({"type": "ready", "model": "m", "kv_tokens": 64}), flush=True)
signal.sigwait({signal.SIGTERM})
"""
BAD = """
import json, sys
sys.stdin.readline()
print(json.dumps({"type": "failed", "message": "no memory", "exit_code": 1}), flush=True)
sys.exit(1)
"""
LIMITS = KeeperLimits(
    restarts=RestartLimits(min_seconds=0.01, max_seconds=0.02, crash_loop_deaths=2),
    start_seconds=10,
    drain_seconds=10,
)


class Local:
    """A provisioner, and everything that it reports, in order."""

    def __init__(self, script: str = GOOD) -> None:
        self.reports: asyncio.Queue[str] = asyncio.Queue()
        self.provisioner = LocalProvisioner(
            lambda replica: LocalReplica(
                spec=ChildSpec(
                    name=f"engine {replica}",
                    command=(sys.executable, "-S", "-E", "-c", script),
                    settings=b"{}",
                ),
                address=f"/{replica}.sock",
            ),
            events=self,
            progress=self,
            limits=LIMITS,
            clock=MonotonicClock(),
        )

    def child_progress(self, child: str, text: str) -> None:
        self.reports.put_nowait(f"{child}: {text}")

    def replica_up(self, replica: ReplicaId, *, address: str, seconds: float) -> None:
        assert seconds > 0
        self.reports.put_nowait(f"{replica} up at {address}")

    def replica_down(self, replica: ReplicaId, *, reason: str, restarts: bool) -> None:
        self.reports.put_nowait(f"{replica} down{', restarts' if restarts else ''}: {reason}")

    def replica_hopeless(self, replica: ReplicaId, failure: Failed) -> None:
        self.reports.put_nowait(f"{replica} hopeless: {failure.message}")

    def pid(self, replica: ReplicaId) -> int:
        pid = self.provisioner.places()[replica].pid
        assert pid is not None
        return pid


@async_test
async def test_a_replica_comes_up_and_is_stopped_for_good():
    local = Local()
    local.provisioner.start(R0)
    assert await local.reports.get() == "engine r0: loading"
    assert await local.reports.get() == "r0 up at /r0.sock"
    place = local.provisioner.places()[R0]
    assert (place.address, place.restarts, place.kv_tokens) == ("/r0.sock", 0, 64)
    pid = local.pid(R0)
    local.provisioner.stop(R0)
    local.provisioner.stop(R0)
    assert await local.reports.get() == "r0 down: it was stopped"
    assert local.provisioner.places() == {}
    assert not is_alive(pid)
    local.provisioner.stop(R0)


@async_test
async def test_a_replica_that_dies_comes_up_again_under_its_name():
    local = Local()
    local.provisioner.start(R0)
    await local.reports.get()
    await local.reports.get()
    os.kill(local.pid(R0), signal.SIGKILL)
    died = "r0 down, restarts: engine r0 died: signal SIGKILL; starts again in 0.01 s"
    assert await local.reports.get() == died
    assert await local.reports.get() == "engine r0: loading"
    assert await local.reports.get() == "r0 up at /r0.sock"
    place = local.provisioner.places()[R0]
    assert (place.restarts, place.reason) == (1, "signal SIGKILL")
    assert await local.provisioner.close() == []


@async_test
async def test_a_replica_that_cannot_start_is_a_crash_loop_and_ends_badly():
    local = Local(BAD)
    local.provisioner.start(R0)
    assert await local.reports.get() == "r0 hopeless: no memory"
    await local.reports.get()
    while not (await local.reports.get()).startswith("r0 down, restarts: crash_loop: engine r0"):
        pass
    assert local.provisioner.places()[R0].is_crash_loop
    assert await local.provisioner.close() == ["engine r0"]


@async_test
async def test_killed_replicas_are_gone_and_nothing_comes_again():
    local = Local()
    for replica in (R0, R1):
        local.provisioner.start(replica)
    for _ in range(4):
        await local.reports.get()
    pids = [local.pid(replica) for replica in (R0, R1)]
    local.provisioner.kill()
    assert sorted(await local.provisioner.close()) == ["engine r0", "engine r1"]
    assert not any(is_alive(pid) for pid in pids)
