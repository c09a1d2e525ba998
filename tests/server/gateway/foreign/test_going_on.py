"""Streams that break off and go on at another server: one stream, one id, nothing lost or twice."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest
from foreign_serving import CHAT, COMPLETE, QUICK, chat, read_answer, serving, start_replica

from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.server.gateway.foreign.config import Migration
from headrace.testing.async_test import async_test
from headrace.testing.openai_replica import Script, expected_text

if TYPE_CHECKING:
    from foreign_serving import Answer, Rig

NUM_TOKENS = 20
BROKEN = {
    "cut": Script(reset_after=7),
    "truncated": Script(truncate_after=7),
    "dead": Script(die_after=7),
    "bad json": Script(bad_json_at=7),
    "bad json later": Script(bad_json_at=19),
}
SERVERS = ("vllm", "sglang", "llamacpp")
EXACT = msgspec.structs.replace(QUICK, migration=Migration.EXACT)
OFF = msgspec.structs.replace(QUICK, migration=Migration.OFF)


def completion(**fields: object) -> dict[str, object]:
    return {"model": "fake", "prompt": "A mill on", "stream": True, **fields}


def body_of(path: str, **fields: object) -> dict[str, object]:
    usage = {"stream_options": {"include_usage": True}, "max_tokens": NUM_TOKENS, **fields}
    return chat(**usage) if path == CHAT else completion(**usage)


def prompt_of(body: dict[str, object]) -> object:
    return body.get("messages", body.get("prompt"))


def check_whole(answer: Answer, body: dict[str, object], *, prompt_tokens: int = 0) -> None:
    """One stream, as if nothing had happened."""
    prompt_tokens = prompt_tokens or len(json.dumps(prompt_of(body)).split())
    assert answer.text == expected_text(prompt_of(body), NUM_TOKENS)
    assert answer.finishes == ["length"]
    for name in ("id", "created", "model", "object"):
        assert len({event.get(name) for event in answer.events} - {None}) == 1
    usage = answer.events[-1]["usage"]
    assert usage["completion_tokens"] == NUM_TOKENS
    assert usage["prompt_tokens"] == prompt_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + NUM_TOKENS


def is_told(answer: Answer) -> bool:
    *events, last = answer.events
    return "error" in last and not any(event["choices"][0]["finish_reason"] for event in events)


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("server", SERVERS)
@async_test
async def test_a_chat_goes_on_where_servers_can(server: str, name: str) -> None:
    broken = replace(BROKEN[name], server=server, itl=0.001)
    async with serving(broken, Script(server=server)) as rig:
        body = body_of(CHAT)
        check_whole(await rig.ask(CHAT, body), body)
        sent = json.loads(rig.replicas[1].fake.tally.bodies[0])
        assert sent["continue_final_message"] is True
        assert sent["add_generation_prompt"] is False
        assert sent["messages"][-1]["role"] == "assistant"
        assert sent["max_tokens"] == NUM_TOKENS - len(sent["messages"][-1]["content"].split())
        assert rig.count(table.OUTPUT_TOKENS) == NUM_TOKENS


@pytest.mark.parametrize("name", BROKEN)
@async_test
async def test_a_completion_goes_on_at_any_server(name: str) -> None:
    async with serving(replace(BROKEN[name], itl=0.001), Script()) as rig:
        body = body_of(COMPLETE)
        check_whole(await rig.ask(COMPLETE, body), body)


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
@async_test
async def test_from_token_ids_no_text_is_tokenised_again(path: str) -> None:
    broken = Script(server="vllm", itl=0.001, reset_after=7)
    async with serving(broken, Script(server="vllm"), foreign=EXACT) as rig:
        body = body_of(path)
        check_whole(await rig.ask(path, body), body, prompt_tokens=32)
        first, second = (each.fake.tally for each in rig.replicas)
        assert json.loads(first.bodies[0])["return_token_ids"] is True
        assert second.heads[0].path == COMPLETE
        ids = json.loads(second.bodies[0])["prompt"]
        assert ids[-7:] == list(range(256, 263))


@async_test
async def test_exact_is_never_less() -> None:
    """A server that tells no ids: its streams are not continued by text behind one's back."""
    broken = Script(server="llamacpp", itl=0.001, reset_after=7)
    async with serving(broken, Script(server="llamacpp"), foreign=EXACT) as rig:
        answers = [await rig.ask(path, body_of(path)) for path in (CHAT, CHAT, COMPLETE)]
        assert [is_told(answer) for answer in (answers[0], answers[2])] == [True, True]
        assert b"return_token_ids" not in rig.replicas[0].fake.tally.bodies[0]


@async_test
async def test_each_server_may_have_its_own_way() -> None:
    broken = Script(server="vllm", itl=0.001, reset_after=7)
    options = (",migration=off", "")
    async with serving(broken, Script(server="vllm"), options=options) as rig:
        assert is_told(await rig.ask(CHAT, body_of(CHAT)))
    options = (",migration=exact", ",migration=exact")
    async with serving(broken, Script(server="vllm"), options=options, foreign=OFF) as rig:
        body = body_of(CHAT)
        check_whole(await rig.ask(CHAT, body), body, prompt_tokens=32)


@async_test
async def test_switched_off_the_client_is_told() -> None:
    broken = Script(server="vllm", itl=0.001, reset_after=7)
    async with serving(broken, Script(server="vllm"), foreign=OFF) as rig:
        assert is_told(await rig.ask(CHAT, body_of(CHAT)))
        assert rig.replicas[1].fake.tally.completions == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"guided_regex": "a+"},
        {"continue_final_message": True},
    ],
)
@async_test
async def test_what_cannot_go_on_is_told_with_the_reason(fields: dict[str, object]) -> None:
    broken = Script(server="vllm", itl=0.001, reset_after=7)
    async with serving(broken, Script(server="vllm")) as rig:
        answer = await rig.ask(CHAT, body_of(CHAT, **fields))
        assert is_told(answer)
        assert "cannot go on elsewhere" in answer.events[-1]["error"]["message"]
        assert rig.replicas[1].fake.tally.completions == 0


@async_test
async def test_a_stream_may_go_on_more_than_once() -> None:
    scripts = [Script(server="vllm", itl=0.001, reset_after=5) for _ in range(3)]
    config = GatewayConfig(policy="round_robin", retry_share=1.0)
    async with serving(*scripts, Script(server="vllm"), config=config) as rig:
        body = body_of(CHAT)
        answer = await rig.ask(CHAT, body)
        assert is_told(answer) or answer.text == expected_text(prompt_of(body), NUM_TOKENS)
        said = [event for event in answer.events if "error" not in event]
        words = "".join(e["choices"][0]["delta"].get("content", "") for e in said if e["choices"])
        assert expected_text(prompt_of(body), NUM_TOKENS).startswith(words)
        assert len(words.split()) >= 15


@async_test
async def test_a_silent_stream_goes_on_and_what_it_still_says_reaches_nobody() -> None:
    scripts = (Script(server="vllm", hang_after=7), Script(server="vllm"))
    async with serving(*scripts) as rig:
        body = body_of(CHAT)
        reader, writer = await rig.send(CHAT, body)
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 1)
        rig.clock.advance(11)
        check_whole(await read_answer(reader), body)
        writer.close()
        await rig.until(lambda: rig.replicas[0].fake.tally.abandoned == 1)


@async_test
async def test_a_killed_servers_streams_all_go_on() -> None:
    scripts = [Script(server="vllm", itl=0.003), Script(server="vllm", itl=0.003)]
    async with serving(*scripts) as rig:
        bodies = [body_of(CHAT, max_tokens=NUM_TOKENS) for _ in range(16)]
        for number, body in enumerate(bodies):
            body["messages"] = [{"role": "user", "content": f"question {number}"}]
        asked = [asyncio.create_task(rig.ask(CHAT, body)) for body in bodies]
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 16)
        await rig.replicas[0].stop()
        for body, answer in zip(bodies, await asyncio.gather(*asked), strict=True):
            check_whole(answer, body)


@async_test
async def test_with_nobody_left_a_stream_waits_for_its_server_to_come_back() -> None:
    async with serving(Script(server="vllm", itl=0.003)) as rig:
        body = body_of(CHAT)
        asked = asyncio.create_task(rig.ask(CHAT, body))
        await rig.until(lambda: rig.count(table.TIME_TO_FIRST_TOKEN) == 1)
        port = rig.replicas[0].port
        await rig.replicas[0].stop()
        rig.extra.append(await start_replica(Script(server="vllm"), port))
        check_whole(await asked, body)


@async_test
async def test_a_refused_continuation_is_told_in_the_stream() -> None:
    """The second server answers 400: that is no answer for a stream that has begun."""
    scripts = (Script(server="vllm", itl=0.001, reset_after=7), Script(server="vllm", status=400))
    async with serving(*scripts) as rig:
        answer = await rig.ask(CHAT, body_of(CHAT))
        assert is_told(answer)
        assert "would not go on (status 400)" in answer.events[-1]["error"]["message"]


@async_test
async def test_nothing_is_promised_behind_the_last_token() -> None:
    """All tokens came and the finish did not: no finish is made up."""
    scripts = (Script(server="vllm", itl=0.001, reset_after=NUM_TOKENS), Script(server="vllm"))
    async with serving(*scripts) as rig:
        answer = await rig.ask(CHAT, body_of(CHAT))
        assert is_told(answer)
        assert "only its end is missing" in answer.events[-1]["error"]["message"]


@async_test
async def test_of_a_very_long_stream_nothing_is_kept() -> None:
    few = msgspec.structs.replace(QUICK, max_resume_bytes=1024)
    scripts = (Script(server="vllm", reset_after=2000), Script(server="vllm"))
    async with serving(*scripts, foreign=few) as rig:
        answer = await rig.ask(CHAT, body_of(CHAT, max_tokens=3000))
        assert is_told(answer)
        assert "over 1024 bytes" in answer.events[-1]["error"]["message"]


@async_test
async def test_a_stream_that_goes_on_is_measured_as_one() -> None:
    scripts = (Script(server="vllm", itl=0.001, reset_after=7), Script(server="vllm"))
    async with serving(*scripts) as rig:
        await rig.ask(CHAT, body_of(CHAT))
        assert rig.count(table.GENERATIONS, "stop") == 1
        assert rig.count(table.MIGRATIONS, rig.replicas[0].name) == 1
        assert_places(rig)


def assert_places(rig: Rig) -> None:
    """The record of the request shows both places."""
    (record,) = rig.gateway.questions.records.newest(10)
    (attempts,) = record.choices.values()
    assert [attempt.choice.replica for attempt in attempts] == [r.name for r in rig.replicas]
