"""A request that kills engines is found, told so, and refused when it comes again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway_serving import COMPLETE, Served, serving
from test_migration import spec

from headrace.executor.simulated import SimulatedExecutor
from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test
from headrace.testing.fake_replica import SimulatedReplica
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from headrace.model.text import TextModel
    from headrace.types import Request

POISON: dict[str, object] = {"prompt": "the old mill", "max_tokens": 4}
HARMLESS: dict[str, object] = {"prompt": "the water of the mill", "max_tokens": 4}


class FrailReplica(SimulatedReplica):
    """One that dies of a prompt."""

    poison: tuple[int, ...] = ()

    def submit(self, request: Request) -> None:
        if self.poison and request.prompt == self.poison:
            asyncio.get_running_loop().call_soon(self.kill, "segmentation fault")
        super().submit(request)


def frail_pool(served: Served, text: TextModel, size: int) -> list[FrailReplica]:
    replicas = [
        FrailReplica(
            served.gateway.traffic,
            executor=SimulatedExecutor(spec(text)),
            clock=served.clock,
            replica=ReplicaId(f"r{index}"),
        )
        for index in range(size)
    ]
    for replica in replicas:
        replica.poison = tuple(served.encode(str(POISON["prompt"])))
        replica.connect()
    return replicas


def num_ready(served: Served) -> int:
    return sum(
        served.registry.value(table.REPLICA_STATE, ReplicaId(f"r{index}"), "ready") == 1
        for index in range(4)
    )


@async_test
async def test_two_replicas_die_of_a_request_and_no_third_one(text: TextModel) -> None:
    async with serving(text, connect=False) as served:
        replicas = frail_pool(served, text, 4)
        answer = await served.request("POST", COMPLETE, POISON)
        assert (answer.status, answer.error["code"]) == (500, "request_rejected_poison")
        assert answer.error["message"].startswith("2 replicas died while they ran this request")
        assert "segmentation fault" in answer.error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert num_ready(served) == 2
        for _ in range(3):
            again = await served.request("POST", COMPLETE, POISON)
            assert (again.status, again.error["code"]) == (500, "request_rejected_poison")
        assert num_ready(served) == 2
        assert (await served.request("POST", COMPLETE, HARMLESS)).status == 200
        for replica in replicas:
            replica.close()


@async_test
async def test_those_that_ran_beside_it_are_answered(text: TextModel) -> None:
    async with serving(text, connect=False) as served:
        replicas = frail_pool(served, text, 4)
        asked = [served.request("POST", COMPLETE, HARMLESS | {"seed": seed}) for seed in range(6)]
        poison = asyncio.create_task(served.request("POST", COMPLETE, POISON))
        answers = await asyncio.gather(*asked)
        assert [answer.status for answer in answers] == [200] * 6
        assert (await poison).status == 500
        for replica in replicas:
            replica.close()


@async_test
async def test_with_the_memory_off_it_kills_as_many_as_migrations_allow(text: TextModel) -> None:
    async with serving(text, GatewayConfig(poison_deaths=0), connect=False) as served:
        replicas = frail_pool(served, text, 4)
        answer = await served.request("POST", COMPLETE, POISON)
        assert (answer.status, answer.error["code"]) == (502, "worker_lost")
        assert num_ready(served) == 0
        for replica in replicas:
            replica.close()
