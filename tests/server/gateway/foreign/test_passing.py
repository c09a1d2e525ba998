"""Requests pass to foreign replicas and answers come back, byte for byte."""

from __future__ import annotations

import asyncio
import json

import pytest
from foreign_serving import CHAT, COMPLETE, QUICK, chat, read_answer, serving

from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test
from headrace.testing.openai_replica import Script, expected_text

FAKE = Script()


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
@pytest.mark.parametrize("stream", [True, False])
@async_test
async def test_an_answer_is_the_replicas_own_to_the_byte(path: str, stream: bool) -> None:
    async with serving(FAKE) as rig:
        body = {**chat("one two", stream=stream, max_tokens=20), "prompt": "one two"}
        through = await rig.ask(path, body)
        direct = await rig.ask(path, body, port=rig.replicas[0].port)
        assert through.status == direct.status == 200
        assert through.body == direct.body
        assert through.headers["content-type"] == direct.headers["content-type"]


@async_test
async def test_class_and_targets_of_the_head_are_passed_on_and_measured() -> None:
    async with serving(FAKE) as rig:
        asked = {"x_headrace_class": "batch", "x_headrace_ttft_ms": "60000"}
        assert (await rig.ask(CHAT, chat(), **asked)).status == 200
        headers = rig.replicas[0].fake.tally.heads[0].headers
        assert headers[b"x-headrace-class"] == b"batch"
        assert float(headers[b"x-headrace-ttft-ms"]) == 60000
        assert b"x-headrace-itl-ms" not in headers
        assert rig.registry.value(table.WITHIN_TARGETS, "batch") == 1
        wrong = await rig.ask(CHAT, chat(), x_headrace_class="urgent")
        assert (wrong.status, json.loads(wrong.body)["error"]["param"]) == (400, "x-headrace-class")


@async_test
async def test_the_body_goes_up_unchanged_and_of_the_head_only_what_may() -> None:
    async with serving(FAKE, key="secret-key") as rig:
        body = b' {"model" : "fake", "messages":[], "odd": {"x": [1, 2.50]}, "stream":false}'
        assert (await rig.ask(CHAT, body)).status == 200
        seen = rig.replicas[0].fake.tally
        assert seen.bodies == [body]
        assert set(seen.heads[0].headers) == {
            b"host",
            b"content-type",
            b"x-request-id",
            b"content-length",
        }
        assert seen.heads[0].headers[b"host"] == rig.replicas[0].name.encode()


@async_test
async def test_replicas_get_the_key_that_is_set_for_them() -> None:
    foreign = QUICK.__class__(**{**_fields(QUICK), "api_key": "upstream"})
    async with serving(FAKE, foreign=foreign) as rig:
        await rig.chat()
        head = rig.replicas[0].fake.tally.heads[0]
        assert head.headers[b"authorization"] == b"Bearer upstream"


@async_test
async def test_many_streams_at_once_each_get_their_own_text() -> None:
    async with serving(Script(itl=0.001), Script(itl=0.001)) as rig:
        answers = await asyncio.gather(
            *(rig.chat(f"question {i}", max_tokens=20) for i in range(64))
        )
        for i, answer in enumerate(answers):
            messages = [{"role": "user", "content": f"question {i}"}]
            assert answer.text == expected_text(messages, 20)
            assert answer.finishes == ["length"]
        assert [each.fake.tally.completions for each in rig.replicas] == [32, 32]


@async_test
async def test_connections_to_replicas_are_used_again() -> None:
    async with serving(FAKE) as rig:
        for _ in range(20):
            await rig.chat()
        assert rig.gateway.watches[0].upstream.num_connects <= 3


@async_test
async def test_a_refusal_passes_unchanged_and_is_no_fault() -> None:
    async with serving(Script(status=422)) as rig:
        for _ in range(12):
            answer = await rig.chat()
            assert answer.status == 422
            assert answer.json["error"]["message"] == "the script says so"
        assert rig.replicas[0].fake.tally.completions == 12
        assert rig.count(table.RETRIES, rig.replicas[0].name) == 0


@async_test
async def test_models_of_all_replicas_are_listed_and_routed_to() -> None:
    async with serving(Script(model="fake"), Script(model="other"), Script(model="fake")) as rig:
        listed = (await rig.ask("/v1/models")).json
        assert [card["id"] for card in listed["data"]] == ["fake", "other"]
        assert (await rig.ask("/v1/models/other")).json["owned_by"] == "fake"
        for _ in range(4):
            assert (await rig.chat(model="other")).text
        assert [each.fake.tally.completions for each in rig.replicas] == [0, 4, 0]


@async_test
async def test_an_unknown_model_is_told_with_near_names() -> None:
    async with serving(Script(model="llama-8b"), Script(model="qwen")) as rig:
        answer = await rig.chat(model="lama-8b")
        assert answer.status == 404
        assert "did you mean llama-8b?" in answer.json["error"]["message"]
        assert answer.json["error"]["param"] == "model"
        assert (await rig.ask("/v1/models/nope")).status == 404
        assert (await rig.ask(CHAT, {"messages": []})).status == 400


@async_test
async def test_without_a_model_the_only_one_is_meant() -> None:
    async with serving(FAKE) as rig:
        assert (await rig.ask(CHAT, {"messages": []})).status == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model":7}', b'{"model":"fake","stream":3}'])
@async_test
async def test_bad_json_is_refused_here(body: bytes) -> None:
    async with serving(FAKE) as rig:
        answer = await rig.ask(CHAT, body)
        assert answer.status == 400
        assert rig.replicas[0].fake.tally.completions == 0


@async_test
async def test_keys_are_wanted_on_every_path_but_those_of_health() -> None:
    async with serving(FAKE, key="k") as rig:
        rig.key = "wrong"
        for path in (CHAT, COMPLETE, "/v1/embeddings"):
            assert (await rig.ask(path, chat())).status == 401
        for path in ("/v1/models", "/metrics", "/v1/models/fake"):
            assert (await rig.ask(path)).status == 401
        for path in ("/live", "/ready", "/health"):
            assert (await rig.ask(path)).status == 200


@async_test
async def test_a_client_that_leaves_ends_its_request_at_the_replica() -> None:
    async with serving(Script(itl=0.005)) as rig:
        reader, writer = await rig.send(CHAT, chat(max_tokens=10_000))
        await reader.readuntil(b"data: ")
        writer.transport.abort()
        await rig.until(lambda: rig.replicas[0].fake.tally.abandoned == 1)


@async_test
async def test_a_client_that_leaves_before_the_answer_ends_it_too() -> None:
    async with serving(Script(latency=60)) as rig:
        for stream in (True, False):
            tally = rig.replicas[0].fake.tally
            before = tally.completions
            _, writer = await rig.send(CHAT, chat(stream=stream))
            await rig.until(lambda: tally.completions == before + 1)  # noqa: B023
            writer.close()
            await rig.until(lambda: tally.abandoned == before + 1)  # noqa: B023


@async_test
async def test_usage_teaches_the_length_of_prompts_and_is_counted() -> None:
    async with serving(FAKE) as rig:
        body = chat("word " * 200, stream_options={"include_usage": True})
        for _ in range(20):
            answer = await rig.ask(CHAT, body)
        assert answer.events[-1]["usage"]["completion_tokens"] == 16
        assert rig.count(table.OUTPUT_TOKENS) == 20 * 16
        assert rig.count(table.PROMPT_TOKENS) == 20 * answer.events[-1]["usage"]["prompt_tokens"]
        assert rig.gateway.pools.pools[0].estimate.bytes_per_token > 4


@async_test
async def test_prompts_with_one_beginning_go_to_one_replica() -> None:
    config = GatewayConfig(policy="predicted_ttft")
    async with serving(FAKE, FAKE, FAKE, config=config) as rig:
        for i in range(12):
            await rig.chat("the same long beginning " * 100 + str(i))
        assert sorted(each.fake.tally.completions for each in rig.replicas) == [0, 0, 12]


@async_test
async def test_requests_are_pipelined_in_order() -> None:
    async with serving(FAKE) as rig:
        reader, writer = await rig.send(CHAT, chat("first"))
        content = json.dumps(chat("second", stream=False)).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(content) + content
        )
        first, second = await read_answer(reader), await read_answer(reader)
        assert first.text == expected_text(chat("first")["messages"], 16)
        assert second.json["choices"][0]["message"]["content"] == expected_text(
            chat("second")["messages"], 16
        )
        writer.close()


def _fields(config: object) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__struct_fields__}  # type: ignore[attr-defined]
