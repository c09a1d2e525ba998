"""Who gets how much: weights, canaries, and the load that others bring."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from foreign_serving import CHAT, QUICK, chat, serving

from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test
from headrace.testing.openai_replica import Script

POLICIES = ("predicted_ttft", "least_requests", "round_robin")


@pytest.mark.parametrize("policy", POLICIES)
@async_test
async def test_a_replica_of_weight_two_has_twice_the_load(policy: str) -> None:
    slow = Script(itl=0.02)
    config = GatewayConfig(policy=policy)
    patient = msgspec.structs.replace(QUICK, connect_timeout=10.0)
    options = (",weight=2", "")
    async with serving(slow, slow, config=config, foreign=patient, options=options) as rig:
        asked = [asyncio.create_task(rig.chat(f"number {i}", max_tokens=5)) for i in range(60)]
        await asyncio.gather(*asked)
        heavy, light = (each.fake.tally.completions for each in rig.replicas)
        assert 1.7 <= heavy / light <= 2.3


@async_test
async def test_a_canary_gets_its_share_and_a_session_stays_on_one_side() -> None:
    async with serving(Script(), Script(), options=("", ",canary=20%")) as rig:
        for number in range(40):
            before = [each.fake.tally.completions for each in rig.replicas]
            for _ in range(3):
                await rig.ask(CHAT, chat(max_tokens=1), x_session_id=f"s{number}")
            after = [each.fake.tally.completions for each in rig.replicas]
            assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 3]
        stable, canary = (each.fake.tally.completions for each in rig.replicas)
        assert stable + canary == 120
        assert 6 <= canary / 3 <= 12  # of 40 sessions; the hashes are fixed but for the tenant


@async_test
async def test_a_canary_that_fails_costs_no_request() -> None:
    config = GatewayConfig(policy="round_robin", retry_share=1.0)
    async with serving(
        Script(), Script(status=500), options=("", ",canary=50%"), config=config
    ) as rig:
        for _ in range(20):
            assert (await rig.chat(max_tokens=1)).status == 200
        assert rig.replicas[1].fake.tally.completions > 0
        await rig.replicas[1].stop()
        for _ in range(10):
            assert (await rig.chat(max_tokens=1)).status == 200


@async_test
async def test_without_a_stable_replica_the_canary_takes_all() -> None:
    async with serving(Script(), Script(), options=("", ",canary=1%")) as rig:
        await rig.replicas[0].stop()
        await rig.until_ready(1)
        for _ in range(5):
            assert (await rig.chat(max_tokens=1)).status == 200


@async_test
async def test_requests_that_came_past_us_count_as_load_and_are_shown() -> None:
    config = GatewayConfig(policy="least_requests")
    scripts = (Script(server="vllm", others=30), Script(server="vllm"))
    async with serving(*scripts, config=config) as rig:
        pool = rig.gateway.questions.pool
        await rig.until(lambda: pool.rows(0)[0].others == 30)
        for _ in range(6):
            await rig.chat(max_tokens=1)
        assert [each.fake.tally.completions for each in rig.replicas] == [0, 6]
        row = pool.rows(rig.clock.now())[0]
        assert (row.others, row.running, row.kv_used) == (30, 30, 0.25)
