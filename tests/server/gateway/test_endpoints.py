"""The small endpoints."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway_serving import CHAT, COMPLETE, serving
from openai.types import Model

from headrace.core.scheduler.events import ReportLoad
from headrace.monitoring import table
from headrace.monitoring.metrics import Kind
from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test
from headrace.testing.fake_replica import FIRST, IDLE, ScriptedReplica, describe
from headrace.types import FinishReason, ReplicaId

if TYPE_CHECKING:
    from headrace.model.text import TextModel

HI = {"messages": [{"role": "user", "content": "hi"}]}


def report(*, step: int, running: int) -> ReportLoad:
    return ReportLoad(
        step=step,
        running=running,
        waiting=0,
        waiting_tokens=0,
        kv_blocks_total=10,
        kv_blocks_free=4,
        kv_blocks_cached=1,
        prompt_tokens_total=0,
        cached_tokens_total=0,
        output_tokens_total=0,
        discarded_tokens_total=0,
        preemptions_total=0,
        step_seconds_total=0.0,
    )


@async_test
async def test_the_models_are_listed_and_found_by_name(text: TextModel) -> None:
    async with serving(text) as served:
        answer = (await served.request("GET", "/v1/models")).json
        assert answer["object"] == "list"
        assert [model["id"] for model in answer["data"]] == ["tiny", "org/alias"]
        for model in answer["data"]:
            Model.model_validate(model, strict=True)
        for path in ("tiny", "org/alias", "org%2Falias"):
            assert (await served.request("GET", f"/v1/models/{path}")).status == 200
        missing = await served.request("GET", "/v1/models/gpt")
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")


@async_test
async def test_a_model_that_is_not_served_is_named_with_those_that_are(text: TextModel) -> None:
    async with serving(text) as served:
        answer = await served.request("POST", CHAT, HI | {"model": "gpt"})
        assert (answer.status, answer.error["param"]) == (404, "model")
        assert "tiny" in answer.error["message"]


@async_test
async def test_texts_and_chats_are_tokenised_as_prompts_are(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        answer = (await client.request("POST", "/tokenize", {"prompt": "the mill"})).json
        assert answer["tokens"] == text.encode_prompt("the mill")
        assert answer["count"] == len(answer["tokens"])
        assert answer["max_model_len"] == 1024
        chat = (await client.request("POST", "/tokenize", HI)).json
        assert chat["tokens"] == text.encode_chat(HI["messages"])
        for body in ({}, {"prompt": "a", **HI}):
            assert (await client.request("POST", "/tokenize", body)).status == 400


@async_test
async def test_tokens_become_text_again(text: TextModel) -> None:
    async with serving(text) as served:
        odd = "caf\u00e9 \U0001f600"
        tokens = [text.tokenizer.eos_id, *served.encode(odd)]
        answer = await served.request("POST", "/detokenize", {"tokens": tokens})
        assert answer.json == {"prompt": "<|im_end|>" + odd}
        wrong = await served.request("POST", "/detokenize", {"tokens": [304]})
        assert (wrong.status, wrong.error["param"]) == (400, "tokens")


@async_test
async def test_long_texts_are_tokenised_in_a_thread(text: TextModel) -> None:
    async with serving(text, GatewayConfig(inline_bytes=10, large_body_bytes=10)) as served:
        long = "the water of the mill"
        answers = await asyncio.gather(
            *(served.request("POST", "/tokenize", {"prompt": f"{long} {n}"}) for n in range(5))
        )
        for n, answer in enumerate(answers):
            assert answer.json["tokens"] == text.encode_prompt(f"{long} {n}")
        answer = await served.chat("fine")
        assert answer.json["choices"][0]["message"]["content"] == "fine"


@async_test
async def test_too_many_texts_in_threads_are_refused(text: TextModel) -> None:
    async with serving(text, GatewayConfig(inline_bytes=0, max_in_threads=1)) as served:
        answers = await asyncio.gather(
            *(served.request("POST", "/tokenize", {"prompt": "the " * 300}) for _ in range(8))
        )
        statuses = {answer.status for answer in answers}
        assert statuses == {200, 503}
        refused = next(answer for answer in answers if answer.status == 503)
        assert refused.error["code"] == "overloaded"
        assert "retry-after" in refused.headers


@async_test
async def test_alive_ready_and_healthy(text: TextModel) -> None:
    async with serving(text, connect=False) as served:
        client = await served.connect()
        assert (await client.request("GET", "/live")).status == 200
        for path in ("/ready", "/health"):
            answer = await client.request("GET", path)
            assert (answer.status, answer.json["reasons"]) == (503, ["no replica is ready"])
        served.replica.connect()
        await asyncio.sleep(0)
        for path in ("/ready", "/health"):
            answer = await client.request("GET", path)
            assert (answer.status, answer.json["ok"]) == (200, True)
        served.replica.disconnect()
        await asyncio.sleep(0)
        assert (await client.request("GET", "/ready")).status == 503


@async_test
async def test_health_proves_that_steps_progress(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        served.clock.advance(100)
        assert (await client.request("GET", "/health")).status == 200, "idle is healthy"
        talk = asyncio.create_task(served.request("POST", CHAT, HI))
        await served.replica.next_request()
        served.replica.events.load(FIRST, report(step=0, running=1))
        await asyncio.sleep(0)
        served.clock.advance(9)
        assert (await client.request("GET", "/health")).status == 200
        served.clock.advance(2)
        assert (await client.request("GET", "/health")).status == 503
        served.replica.events.load(FIRST, report(step=0, running=1))
        await asyncio.sleep(0)
        for path in ("/health", "/ready"):
            stuck = await client.request("GET", path)
            assert (stuck.status, stuck.json["reasons"]) == (503, ["r0: suspect"]), "the same step"
        served.replica.events.load(FIRST, report(step=1, running=1))
        await asyncio.sleep(0)
        assert (await client.request("GET", "/health")).status == 200
        again = await served.replica.next_request()
        served.replica.say(again, served.encode("a"), finish=FinishReason.LENGTH)
        await talk
        assert (await client.request("GET", "/health")).status == 200


@async_test
async def test_one_stuck_replica_of_two_does_not_make_the_server_sick(text: TextModel) -> None:
    async with serving(text) as served:
        other = ScriptedReplica(
            served.gateway.traffic, vocab_size=text.tokenizer.vocab_size, replica=ReplicaId("r1")
        )
        talk = asyncio.create_task(served.request("POST", CHAT, HI))
        await served.replica.next_request()
        served.replica.events.load(FIRST, report(step=0, running=1))
        other.connect()
        await asyncio.sleep(0)
        served.clock.advance(11)
        served.replica.events.load(FIRST, report(step=0, running=1))
        again = await other.next_request()
        answer = await served.request("GET", "/health")
        assert (answer.status, answer.json["reasons"]) == (200, ["r0: suspect"])
        other.say(again, [], finish=FinishReason.STOP)
        await talk


@async_test
async def test_a_silent_replica_is_not_ready(text: TextModel) -> None:
    async with serving(text) as served:
        served.replica.events.beat(FIRST, IDLE)
        await asyncio.sleep(0)
        served.clock.advance(3.1)
        served.replica.events.load(
            FIRST, report(step=0, running=0)
        )  # makes the Router look at the time
        await asyncio.sleep(0)
        assert (await served.request("GET", "/ready")).status == 200, "a report is a sign of life"
        served.clock.advance(3.1)
        talk = asyncio.create_task(served.request("POST", CHAT, HI))
        await served.until(lambda: served.gateway.questions.pool.router.num_waiting == 1)
        assert (await served.request("GET", "/ready")).json["reasons"] == ["r0: suspect"]
        served.replica.events.beat(FIRST, IDLE)
        served.replica.events.beat(FIRST, IDLE)
        request = await served.replica.next_request()
        assert (await served.request("GET", "/ready")).status == 200
        served.replica.say(request, [], finish=FinishReason.STOP)
        await talk


@async_test
async def test_metrics_count_what_was_asked_and_answered(text: TextModel) -> None:
    async with serving(text) as served:
        await served.chat("Hello.")
        await served.request("GET", "/nothing")
        await served.request("POST", CHAT, b"{")
        value = served.registry.value
        assert value(table.HTTP_REQUESTS, CHAT, "200") == 1
        assert value(table.HTTP_REQUESTS, CHAT, "400") == 1
        assert value(table.HTTP_REQUESTS, "_refused", "404") == 1
        assert value(table.GENERATIONS, "stop") == 1
        num_tokens = len(served.encode("Hello.")) + 1
        assert value(table.OUTPUT_TOKENS) == num_tokens
        assert value(table.TIME_TO_FIRST_TOKEN) == 1
        assert value(table.INTER_TOKEN) == num_tokens - 1
        assert value(table.REPLICA_READY, "r0") == 1
        served.replica.events.load(FIRST, report(step=3, running=1))
        assert value(table.ENGINE_STEPS, "r0") == 3
        answer = await served.request("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "headrace_connections 1" in answer.body.decode()
        served.replica.disconnect()
        assert value(table.REPLICA_LOSSES, "r0") == 1
        assert all(metric.kind in Kind for metric in table.GATEWAY_TABLE)


@async_test
async def test_a_replica_with_another_model_is_not_used(text: TextModel) -> None:
    async with serving(text) as served:
        vocab_size = text.tokenizer.vocab_size
        other = ScriptedReplica(
            served.gateway.traffic, vocab_size=vocab_size, replica=ReplicaId("r1")
        )
        for wrong in (
            describe(ReplicaId("r1"), vocab_size=vocab_size, model_identity="other"),
            describe(ReplicaId("r1"), vocab_size=vocab_size, block_size=32),
            describe(ReplicaId("r1"), vocab_size=vocab_size - 1),
        ):
            other.description = wrong
            other.connect()
            await asyncio.sleep(0)
            health = (await served.request("GET", "/health")).json
            assert [each["replica"] for each in health["replicas"]] == ["r0"]
        other.disconnect()
        await served.chat("fine")


@async_test
async def test_the_shortest_context_of_the_replicas_counts(text: TextModel) -> None:
    async with serving(text, connect=False) as served:
        served.replica.description = describe(
            ReplicaId("r0"), vocab_size=text.tokenizer.vocab_size, max_model_len=64
        )
        served.replica.connect()
        answer = await served.request("POST", COMPLETE, {"prompt": "a", "max_tokens": 64})
        assert answer.error["code"] == "context_length_exceeded"
