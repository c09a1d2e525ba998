"""What was seen of other routers, and must not be seen of this one.

Failover that fails under affinity, a call to every server for each request, all load on one server
while there is little, and events held back by Nagle's algorithm.
"""

from __future__ import annotations

import socket

import pytest
from foreign_serving import serving

from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test
from headrace.testing.openai_replica import Script, expected_text

POLICIES = ("predicted_ttft", "least_requests", "round_robin")


@pytest.mark.parametrize("policy", POLICIES)
@async_test
async def test_two_of_four_die_and_no_request_of_one_prefix_notices(policy: str) -> None:
    config = GatewayConfig(policy=policy)
    async with serving(*[Script()] * 4, config=config) as rig:
        prefix = "the same long beginning " * 100
        for number in range(8):
            await rig.chat(f"{prefix}{number}", max_tokens=1)
        used = sorted(rig.replicas, key=lambda each: -each.fake.tally.completions)
        for replica in used[:2]:
            await replica.stop()
        for number in range(40):
            text = f"{prefix}{number}"
            answer = await rig.chat(text, max_tokens=3)
            assert answer.status == 200
            assert answer.text == expected_text([{"role": "user", "content": text}], 3)


@pytest.mark.parametrize("policy", POLICIES)
@async_test
async def test_a_request_is_one_request_to_one_server(policy: str) -> None:
    async with serving(*[Script()] * 4, config=GatewayConfig(policy=policy)) as rig:
        for number in range(40):
            await rig.chat(f"number {number}", max_tokens=1)
        assert sum(each.fake.tally.completions for each in rig.replicas) == 40


@async_test
async def test_affinity_leaves_no_server_idle_when_there_are_several_prefixes() -> None:
    config = GatewayConfig(policy="predicted_ttft")
    async with serving(*[Script()] * 4, config=config) as rig:
        for number in range(80):
            group = f"group {number % 16} " * 60
            await rig.chat(f"{group}{number}", max_tokens=1)
        counts = [each.fake.tally.completions for each in rig.replicas]
        assert max(counts) <= 40
        assert sum(count > 0 for count in counts) >= 3


@async_test
async def test_nothing_is_held_back_on_the_way_to_a_server() -> None:
    async with serving(Script()) as rig:
        await rig.chat()
        upstream = rig.gateway.watches[0].upstream
        await rig.until(lambda: len(upstream._kept) > 0)
        sock = upstream._kept[0]._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
