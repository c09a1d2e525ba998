"""Attempts by their ids: what a link does with those that come too late."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from foreign_serving import chat, serving

from headrace.core.router.events import ReplicaLost
from headrace.monitoring import table
from headrace.server.gateway.foreign.link import client_id
from headrace.testing.async_test import async_test
from headrace.testing.openai_replica import Script, expected_text
from headrace.types import ReplicaId, RequestId


def test_attempts_are_named_after_their_requests() -> None:
    assert client_id(RequestId("abc")) == client_id(RequestId("abc~2")) == "abc"


@async_test
async def test_a_stream_that_was_given_up_ends_in_one_error() -> None:
    async with serving(Script(itl=0.002), Script(itl=0.002)) as rig:
        pool = rig.gateway.pools.pools[0]
        asked = asyncio.create_task(rig.chat(max_tokens=100_000))
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 1)
        pool.traffic.feed(ReplicaLost(ReplicaId(rig.replicas[0].name), "the test says so"))
        assert (await asked).events[-1]["error"]["code"] == "worker_lost"
        assert rig.replicas[1].fake.tally.completions == 0
        await rig.until(lambda: rig.replicas[0].fake.tally.abandoned == 1)


@async_test
async def test_an_answer_that_comes_after_its_attempt_was_given_up_reaches_nobody() -> None:
    async with serving(Script(latency=0.2), Script(latency=0.4)) as rig:
        pool = rig.gateway.pools.pools[0]
        asked = asyncio.create_task(rig.chat())
        await rig.until(lambda: rig.replicas[0].fake.tally.completions == 1)
        pool.traffic.feed(ReplicaLost(ReplicaId(rig.replicas[0].name), "the test says so"))
        assert (await asked).text == expected_text(chat()["messages"], 16)
        assert rig.replicas[0].fake.tally.abandoned == 1
        assert rig.count(table.GENERATIONS, "stop") == 1


@pytest.mark.interpreted
@async_test
async def test_the_router_may_give_up_what_has_just_begun() -> None:
    """Its second attempt is refused: the client has some of the first one's answer."""
    async with serving(Script(itl=0.002), Script(itl=0.002)) as rig:
        pool = rig.gateway.pools.pools[0]
        lost = ReplicaLost(ReplicaId(rig.replicas[0].name), "the test says so")
        outputs, traffic = pool.traffic.outputs, pool.traffic

        def late(replica: ReplicaId, given: object) -> None:
            """Hear of the first byte only after the loss."""
            traffic.feed(lost)
            outputs(replica, cast("tuple[()]", given))

        traffic.outputs = late  # type: ignore[method-assign]
        reader, writer = await rig.send("/v1/chat/completions", chat(max_tokens=50))
        content = await asyncio.wait_for(reader.readuntil(b"[DONE]"), 10)
        assert content.count(b"worker_lost") == 1
        assert rig.replicas[1].fake.tally.completions == 0
        writer.close()
        traffic.outputs = outputs  # type: ignore[method-assign]
