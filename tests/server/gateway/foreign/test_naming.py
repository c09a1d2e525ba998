"""What models are called: by replicas, by operators, by clients, and in answers."""

from __future__ import annotations

import json

import msgspec
from foreign_serving import CHAT, QUICK, chat, serving

from headrace.testing.async_test import async_test
from headrace.testing.openai_replica import Script, expected_text

ALIASED = msgspec.structs.replace(QUICK, aliases=("gpt-4o-mini=fake",))


@async_test
async def test_an_alias_is_one_name_more_and_the_body_has_the_other() -> None:
    async with serving(Script(), foreign=ALIASED) as rig:
        body = b' {"model" : "gpt-4o-mini", "messages":[], "odd": {"x": [1, 2.50]} }'
        assert (await rig.ask(CHAT, body)).status == 200
        assert rig.replicas[0].fake.tally.bodies == [body.replace(b"gpt-4o-mini", b"fake")]
        assert (await rig.chat(model="fake")).status == 200


@async_test
async def test_answers_name_the_model_that_answered() -> None:
    """As OpenAI's do, whose answers name a dated model where an alias was asked."""
    async with serving(Script(), foreign=ALIASED) as rig:
        answer = await rig.chat(model="gpt-4o-mini")
        assert {event["model"] for event in answer.events} == {"fake"}
        direct = await rig.ask(CHAT, chat(), port=rig.replicas[0].port)
        assert answer.body == direct.body


@async_test
async def test_aliases_are_listed_and_described() -> None:
    async with serving(Script(), foreign=ALIASED) as rig:
        listed = (await rig.ask("/v1/models")).json["data"]
        assert [card["id"] for card in listed] == ["fake", "gpt-4o-mini"]
        assert (await rig.ask("/v1/models/gpt-4o-mini")).json["owned_by"] == "fake"


@async_test
async def test_an_alias_of_nothing_is_told_when_it_is_asked() -> None:
    foreign = msgspec.structs.replace(QUICK, aliases=("gpt=llama",))
    async with serving(Script(), foreign=foreign) as rig:
        answer = await rig.chat(model="gpt")
        assert answer.status == 404
        message = answer.json["error"]["message"]
        assert message == "'gpt' stands for 'llama', which no replica serves"
        assert [card["id"] for card in (await rig.ask("/v1/models")).json["data"]] == ["fake"]


@async_test
async def test_an_unknown_name_is_told_with_those_that_are_known() -> None:
    async with serving(Script(), Script(model="other"), foreign=ALIASED) as rig:
        answer = await rig.chat(model="zzzzzzzz")
        assert answer.status == 404
        assert "there is fake, other, gpt-4o-mini" in answer.json["error"]["message"]


@async_test
async def test_replicas_with_different_names_for_one_model_are_one_pool() -> None:
    scripts = (Script(model="/models/llama.gguf"), Script(model="meta/Llama-3"))
    async with serving(*scripts, options=(",alias=llama", ",alias=llama")) as rig:
        assert [card["id"] for card in (await rig.ask("/v1/models")).json["data"]] == ["llama"]
        for name in ("llama", "meta/Llama-3", "/models/llama.gguf", "llama"):
            answer = await rig.chat(model=name)
            assert answer.text == expected_text(chat()["messages"], 16)
        sent = [json.loads(each.fake.tally.bodies[-1])["model"] for each in rig.replicas]
        assert sent == [script.model for script in scripts]
        assert [each.fake.tally.completions for each in rig.replicas] == [2, 2]


@async_test
async def test_without_a_model_in_the_body_nothing_is_added() -> None:
    async with serving(Script(model="x"), options=(",alias=llama",)) as rig:
        assert (await rig.ask(CHAT, b'{"messages":[]}')).status == 200
        assert rig.replicas[0].fake.tally.bodies == [b'{"messages":[]}']


@async_test
async def test_a_stream_keeps_the_first_servers_name_for_the_model() -> None:
    scripts = (
        Script(model="one", server="vllm", itl=0.001, reset_after=5),
        Script(model="two", server="vllm"),
    )
    async with serving(*scripts, options=(",alias=m", ",alias=m")) as rig:
        answer = await rig.chat(model="m", max_tokens=16)
        assert answer.text == expected_text(chat()["messages"], 16)
        assert {event["model"] for event in answer.events} == {"one"}
        assert json.loads(rig.replicas[1].fake.tally.bodies[0])["model"] == "two"
