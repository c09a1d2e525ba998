"""A request goes on elsewhere, and its client cannot tell: same text, same usage, no error."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from gateway_serving import CHAT, COMPLETE, Served, serving

from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SimulatedExecutor
from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test
from headrace.testing.fake_replica import ScriptedReplica, SimulatedReplica
from headrace.types import FinishReason, ReplicaId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headrace.model.text import TextModel

LENGTH = 12
PROMPT: dict[str, object] = {"prompt": "the water of the mill", "max_tokens": LENGTH, "seed": 7}
BODIES: dict[str, dict[str, object]] = {
    "greedy": PROMPT | {"temperature": 0},
    "sampled": PROMPT,
    "two choices": PROMPT | {"n": 2},
    "logprobs": PROMPT | {"logprobs": 3},
    "penalties": PROMPT | {"presence_penalty": 1.5, "repetition_penalty": 1.3, "min_tokens": 9},
}


def spec(text: TextModel) -> ExecutorSpec:
    return ExecutorSpec(
        model_identity="simulated",
        vocab_size=text.tokenizer.vocab_size,
        max_model_len=256,
        block_size=4,
        num_blocks=256,
        block_bytes=0,
    )


@asynccontextmanager
async def pool(
    text: TextModel, size: int = 2, config: GatewayConfig | None = None
) -> AsyncIterator[tuple[Served, list[SimulatedReplica]]]:
    """Serve with several simulated engines."""
    async with serving(text, config, connect=False) as served:
        replicas = [
            SimulatedReplica(
                served.gateway.traffic,
                executor=SimulatedExecutor(spec(text)),
                clock=served.clock,
                replica=ReplicaId(f"r{index}"),
            )
            for index in range(size)
        ]
        for replica in replicas:
            replica.connect()
        yield served, replicas
        for replica in replicas:
            replica.close()


def content(answer: Any, *, stream: bool) -> tuple[Any, ...]:  # noqa: ANN401
    """What a client gets of an answer: texts, log-probabilities, ends, usage."""
    if not stream:
        return (
            [(c["text"], c["finish_reason"], c["logprobs"]) for c in answer.json["choices"]],
            answer.json["usage"],
        )
    texts: dict[int, list[Any]] = {}
    usage = None
    for event in answer.events:
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            parts = texts.setdefault(choice["index"], ["", None, []])
            parts[0] += choice["text"]
            parts[1] = choice["finish_reason"] or parts[1]
            parts[2].append(json.dumps(choice["logprobs"]))
    return texts, usage


async def ask(served: Served, body: dict[str, object], *, stream: bool) -> tuple[Any, ...]:
    if stream:
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
    answer = await served.request("POST", COMPLETE, body)
    assert answer.status == 200, answer.body
    return content(answer, stream=stream)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@async_test
async def test_a_replica_may_die_at_any_token(
    text: TextModel, body: dict[str, object], stream: bool
) -> None:
    async with pool(text) as (served, _):
        expected = await ask(served, body, stream=stream)
    for lived in range(LENGTH * 2 if "n" in body else LENGTH):
        async with pool(text) as (served, replicas):
            for replica in replicas[:1]:
                replica.tokens_to_live = lived
            replicas[1].hang()  # so that the first is the one that answers
            talk = asyncio.create_task(ask(served, body, stream=stream))
            await served.until(lambda: served.registry.value(table.REPLICA_LOSSES, "r0") == 1)
            replicas[1].resume()
            found = await talk
            assert found == expected, f"killed after {lived} tokens"


@async_test
async def test_a_stop_string_ends_the_same_text_wherever_it_dies(text: TextModel) -> None:
    async with pool(text) as (served, _):
        plain, _ = await ask(served, PROMPT, stream=False)
    body = PROMPT | {"stop": [plain[0][0][6:9]]}
    async with pool(text) as (served, _):
        expected = await ask(served, body, stream=True)
    assert expected[0][0][1] == "stop"
    for lived in range(expected[1]["completion_tokens"]):
        async with pool(text) as (served, replicas):
            replicas[0].tokens_to_live = lived
            replicas[1].hang()
            talk = asyncio.create_task(ask(served, body, stream=True))
            await served.until(lambda: served.registry.value(table.REPLICA_LOSSES, "r0") == 1)
            replicas[1].resume()
            assert await talk == expected, f"killed after {lived} tokens"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@async_test
async def test_stop_strings_are_found_across_the_border_of_two_replicas(
    text: TextModel, stream: bool
) -> None:
    async with serving(text) as served:
        other = ScriptedReplica(
            served.gateway.traffic, vocab_size=text.tokenizer.vocab_size, replica=ReplicaId("r1")
        )
        said = served.encode("wheel STOP here")
        for cut in range(1, len(served.encode("wheel STOP"))):
            other.disconnect()
            body = PROMPT | {"stop": ["STOP"], "max_tokens": 60}
            talk = asyncio.create_task(ask(served, body, stream=stream))
            first = await served.replica.next_request()
            served.replica.say(first, said[:cut])
            other.connect()
            await asyncio.sleep(0)
            served.replica.disconnect()
            second = await other.next_request()
            assert second.prompt == first.prompt + tuple(said[:cut])
            assert second.num_prior == cut
            assert second.max_tokens == first.max_tokens - cut
            other.say(second, said[cut:])
            choices, usage = await talk
            shown = choices[0][0]
            assert shown == "wheel "
            assert usage["completion_tokens"] == len(served.encode("wheel STOP"))
            served.replica.connect()


@async_test
async def test_a_character_may_be_split_between_two_replicas(text: TextModel) -> None:
    async with serving(text) as served:
        other = ScriptedReplica(
            served.gateway.traffic, vocab_size=text.tokenizer.vocab_size, replica=ReplicaId("r1")
        )
        said = served.encode("caf\u00e9 \U0001f600!")
        talk = asyncio.create_task(ask(served, PROMPT, stream=True))
        first = await served.replica.next_request()
        served.replica.say(first, said[:-3], cached_tokens=5)
        other.connect()
        await asyncio.sleep(0)
        served.replica.disconnect()
        second = await other.next_request()
        other.say(second, said[-3:-1], cached_tokens=9)
        other.say(second, said[-1:], finish=FinishReason.LENGTH, cached_tokens=9)
        texts, usage = await talk
        assert texts[0][0] == "caf\u00e9 \U0001f600!"
        assert usage["completion_tokens"] == len(said)
        assert usage["prompt_tokens_details"]["cached_tokens"] == 5, "the first attempt's"


@async_test
async def test_a_replica_that_hangs_loses_its_streams_and_its_late_tokens_reach_nobody(
    text: TextModel,
) -> None:
    async with pool(text) as (served, _):
        expected = await ask(served, PROMPT, stream=True)
    async with pool(text) as (served, replicas):
        replicas[0].hang()
        replicas[1].hang()
        talk = asyncio.create_task(ask(served, PROMPT, stream=True))
        await served.until(lambda: len(served.gateway.traffic.generations) == 1)
        await served.until(
            lambda: any(view.outstanding for view in served.gateway.questions.pool.router.replicas)
        )
        views = served.gateway.questions.pool.router.replicas
        stuck, well = (0, 1) if views[0].outstanding else (1, 0)
        replicas[well].resume()
        served.clock.advance(2.9)
        replicas[well]._send_beat()
        await asyncio.sleep(0)
        served.clock.advance(0.2)
        replicas[well]._send_beat()
        assert await talk == expected
        replicas[stuck].resume()
        replicas[stuck]._send_beat()
        assert served.registry.value(table.RETRIES, f"r{stuck}") == 1
        await served.until(lambda: served.gateway.questions.pool.router.num_alive == 0)


@async_test
async def test_the_last_replica_that_dies_ends_streams_with_an_error_event(
    text: TextModel,
) -> None:
    async with serving(text, GatewayConfig(max_wait=5)) as served:
        client = await served.connect()
        client.ask("POST", CHAT, {"messages": [{"role": "user", "content": "hi"}], "stream": True})
        request = await served.replica.next_request()
        served.replica.say(request, served.encode("a"))
        await asyncio.sleep(0)
        served.replica.disconnect("killed")
        await served.until(lambda: served.gateway.questions.pool.router.num_waiting == 1)
        served.clock.advance(5.1)
        served.replica.connect()
        served.replica.disconnect("again")
        events = (await client.answer("POST")).events
        assert events[-1]["error"]["code"] == "worker_lost"
        assert (await client.request("GET", "/live")).status == 200


@async_test
async def test_a_stream_waits_for_its_replica_to_come_back(text: TextModel) -> None:
    async with serving(text) as served:
        talk = asyncio.create_task(ask(served, PROMPT, stream=True))
        first = await served.replica.next_request()
        served.replica.say(first, served.encode("ab"))
        await asyncio.sleep(0)
        served.replica.disconnect("killed")
        await asyncio.sleep(0)
        served.replica.connect()
        second = await served.replica.next_request()
        assert second.id == f"{first.id}~2"
        served.replica.say(first, served.encode("stale"))
        served.replica.say(second, served.encode("c"), finish=FinishReason.LENGTH)
        texts, _ = await talk
        assert texts[0][0] == "abc"
        assert served.registry.value(table.MIGRATIONS, "r0") == 1


@async_test
async def test_with_migration_off_a_loss_is_an_error_at_once(text: TextModel) -> None:
    async with serving(text, GatewayConfig(max_migrations=0)) as served:
        client = await served.connect()
        client.ask("POST", COMPLETE, PROMPT)
        await served.replica.next_request()
        served.replica.disconnect("killed")
        answer = await client.answer("POST")
        assert (answer.status, answer.error["code"]) == (502, "worker_lost")
        assert "retry-after" in answer.headers
