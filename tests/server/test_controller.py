"""The controller: what is told to gateways when replicas come, die, drain and go."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.clock import MonotonicClock, wall_time
from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.autoscaler.machine import Autoscaler
from headrace.messages import Emptied, Members, PoolReplica, PoolReport
from headrace.monitoring.journal import Journal
from headrace.server.child import Failed
from headrace.server.controller import Controller, pool_load
from headrace.server.decisions import Decisions
from headrace.server.provisioner import Place
from headrace.testing.async_test import async_test
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.server.provisioner import ReplicaEvents

R0, R1 = ReplicaId("r0"), ReplicaId("r1")


class Around:
    """Everything round a controller, remembering what it was told in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.controller = Controller(
            Autoscaler(AutoscalerConfig()),
            provision=self._provision,
            gateways=self,
            events=self,
            decisions=Decisions(Journal(unix_time=wall_time, source="autoscaler"), wall_time),
            drain_limit=12.5,
            clock=MonotonicClock(),
        )

    def _provision(self, events: ReplicaEvents) -> Around:
        return self

    # Provisioner

    def start(self, replica: ReplicaId) -> None:
        self.log.append(f"start {replica}")

    def stop(self, replica: ReplicaId) -> None:
        self.log.append(f"stop {replica}")

    def places(self) -> Mapping[ReplicaId, Place]:
        return {R0: Place(address="/r0")}

    def kill(self) -> None:
        self.log.append("kill")

    async def close(self) -> tuple[str, ...]:
        return ("r9",)

    # Gateways and ControllerEvents

    def send_members(self, members: Members) -> None:
        names = [f"{m.replica}{'-' if m.draining else ''}" for m in members.members]
        self.log.append(f"members {' '.join(names)}".rstrip())
        assert all(member.drain_limit == 12.5 for member in members.members)

    def pool_trouble(self, text: str) -> None:
        self.log.append(f"trouble {text}")

    def pool_hopeless(self, failure: Failed) -> None:
        self.log.append(f"hopeless {failure.message}")

    def pool_fault(self, error: Exception) -> None:
        self.log.append(f"fault {error}")

    async def heard(self, act: Callable[[], None]) -> list[str]:
        """Return what is told because of ``act``."""
        before = len(self.log)
        act()
        for _ in range(3):
            await asyncio.sleep(0)
        return self.log[before:]

    async def with_two(self) -> Controller:
        controller = self.controller
        await self.heard(lambda: controller.set_range(2, 2))
        for name in (R0, R1):
            await self.heard(lambda n=name: self.up(n))
        return controller

    def up(self, replica: ReplicaId) -> None:
        self.controller.replica_up(replica, address=f"/{replica}", seconds=1.0)


@async_test
async def test_replicas_are_members_when_they_are_ready():
    around = Around()
    controller = around.controller
    assert await around.heard(lambda: controller.set_range(2, 2)) == ["start r0", "start r1"]
    assert await around.heard(lambda: around.up(R1)) == ["members r1"]
    assert await around.heard(lambda: around.up(R0)) == ["members r1 r0"]


@async_test
async def test_a_replica_that_died_and_comes_again_stays_a_member():
    around = Around()
    controller = await around.with_two()
    assert await around.heard(
        lambda: controller.replica_down(R0, reason="r0 died", restarts=True)
    ) == ["trouble r0 died"]
    assert await around.heard(lambda: around.up(R0)) == ["members r0 r1"]


@async_test
async def test_a_drained_replica_leaves_the_table_before_it_is_stopped():
    around = Around()
    controller = await around.with_two()
    await around.heard(lambda: controller.set_range(1, 2))
    assert await around.heard(lambda: controller.drain(R0, cancel=False)) == ["members r0- r1"]
    assert await around.heard(lambda: controller.drain(R0, cancel=True)) == ["members r0 r1"]
    await around.heard(lambda: controller.drain(R0, cancel=False))
    emptied = Emptied("g0", "r0")
    assert await around.heard(lambda: controller.reports.gateway_emptied(emptied)) == [
        "members r1",
        "stop r0",
    ]
    late = await around.heard(lambda: around.up(R0))
    assert late == ["members r1"]  # it became ready while it was told to end
    await around.heard(lambda: controller.replica_down(R0, reason="stopped", restarts=False))
    assert list(controller.autoscaler.stages()) == ["r1"]


@async_test
async def test_a_frozen_controller_decides_nothing():
    around = Around()
    controller = await around.with_two()
    controller.freeze()
    assert controller.is_closed
    assert await around.heard(lambda: controller.set_range(4, 4)) == []
    assert await controller.close() == ("r9",)


@async_test
async def test_hopeless_replicas_and_decisions_are_told():
    around = Around()
    controller = await around.with_two()
    heard = await around.heard(lambda: controller.replica_hopeless(R0, Failed("no file", 2)))
    assert heard == ["hopeless no file"]
    kinds = [entry.kind for entry in controller.decisions.journal.after(0)]
    assert kinds == ["scaled", "start", "start", "ready", "ready"]
    assert controller.decisions.num_scalings == {"out": 1, "in": 0, "same": 0}


@async_test
async def test_the_floor_is_ready_when_a_gateway_reaches_it():
    around = Around()
    controller = await around.with_two()
    waiting = asyncio.create_task(controller.floor_is_ready(2))
    controller.reports.gateway_load(report("r0"))
    await asyncio.sleep(0)
    assert not waiting.done()
    controller.reports.gateway_load(report("r0", "r1"))
    assert [place.address for place in await waiting] == ["/r0"]


def report(*names: str) -> PoolReport:
    return PoolReport(
        gateway="g0",
        waiting=1,
        waiting_tokens=20,
        predicted_ttft=0.5,
        replicas=tuple(
            PoolReplica(
                replica=name,
                outstanding=2,
                prefill_tokens=3,
                kv_used=0.25,
                prefill_rate=1000.0,
                computed_tokens=77,
                max_num_seqs=8,
            )
            for name in names
        ),
    )


def test_a_report_is_a_load_field_by_field():
    load = pool_load(report("r0"))
    assert (load.waiting, load.waiting_tokens, load.predicted_ttft) == (1, 20, 0.5)
    (replica,) = load.replicas
    assert (replica.replica, replica.outstanding, replica.prefill_tokens) == ("r0", 2, 3)
    assert (replica.kv_used, replica.prefill_rate) == (0.25, 1000.0)
    assert (replica.computed_tokens, replica.max_num_seqs) == (77, 8)
