"""Structured output through the gateway: valid, or refused before anything is queued."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from gateway_serving import CHAT, COMPLETE, Served, serving

from headrace.errors import BadGrammar
from headrace.executor.base import ExecutorSpec
from headrace.executor.constraints import Constraints
from headrace.executor.simulated import SimulatedExecutor
from headrace.model.grammar import GrammarCompiler
from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.testing.async_test import async_test
from headrace.testing.fake_replica import SimulatedReplica
from headrace.types import Constraint, ConstraintKind, ReplicaId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headrace.model.text import TextModel

HI = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "on": {"type": "boolean"},
        "number": {"enum": [1, 22, 333]},
        "name": {"type": "string", "maxLength": 6},
    },
    "required": ["on", "number", "name"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
TOOLS = [
    {"type": "function", "function": {"name": "set", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "description": "no parameters"}},
]
NAMED = {"type": "function", "function": {"name": "set"}}


@asynccontextmanager
async def simulated(
    text: TextModel, config: GatewayConfig | None = None, size: int = 1
) -> AsyncIterator[tuple[Served, list[SimulatedReplica]]]:
    """Serve with engines that honour constraints. The first is connected."""
    spec = ExecutorSpec(
        model_identity="simulated",
        vocab_size=text.tokenizer.vocab_size,
        max_model_len=1024,
        block_size=16,
        num_blocks=512,
        block_bytes=0,
    )
    compiler = GrammarCompiler(lambda: text.tokenizer)
    async with serving(text, config, connect=False) as served:
        replicas = [
            SimulatedReplica(
                served.gateway.traffic,
                executor=SimulatedExecutor(spec, constraints=Constraints(compiler)),
                clock=served.clock,
                replica=ReplicaId(f"r{index}"),
            )
            for index in range(size)
        ]
        replicas[0].connect()
        yield served, replicas
        for replica in replicas:
            replica.close()


def check(content: str) -> None:
    """Assert that a text matches SCHEMA."""
    value = json.loads(content)
    assert value.keys() == {"on", "number", "name"}
    assert value["on"] in (True, False)
    assert value["number"] in (1, 22, 333)
    assert len(value["name"]) <= 6


@async_test
async def test_a_response_format_holds_each_choice_to_its_schema(text: TextModel) -> None:
    async with simulated(text) as (served, _):
        for seed in range(5):
            body = {"messages": HI, "response_format": FORMAT, "n": 3, "seed": seed}
            answer = await served.request("POST", CHAT, body)
            for choice in answer.json["choices"]:
                assert choice["finish_reason"] == "stop"
                check(choice["message"]["content"])


FIELDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "regex": ({"guided_regex": "(yes|no){2}"}, ("yesyes", "yesno", "noyes", "nono")),
    "choice": ({"guided_choice": ["oui", "\u00e9t\u00e9", '"']}, ("oui", "\u00e9t\u00e9", '"')),
    "lark": ({"guided_grammar": 'start: "a" | "b"'}, ("a", "b")),
    "gbnf": ({"guided_grammar": 'root ::= "a" | "b"'}, ("a", "b")),
    "schema": ({"guided_json": {"enum": ["x", 5]}}, ('"x"', "5")),
    "schema as text": ({"guided_json": '{"enum": ["x", 5]}'}, ('"x"', "5")),
    "vllm schema": ({"structured_outputs": {"json": {"enum": ["x", 5]}}}, ('"x"', "5")),
    "vllm regex": ({"structured_outputs": {"regex": "a|b"}}, ("a", "b")),
    "vllm choice": ({"structured_outputs": {"choice": ["a", "b"]}}, ("a", "b")),
    "vllm grammar": ({"structured_outputs": {"grammar": 'start: "a" | "b"'}}, ("a", "b")),
}


@pytest.mark.parametrize(("fields", "expected"), FIELDS.values(), ids=FIELDS)
@async_test
async def test_each_field_has_its_effect_in_completions_and_chats(
    text: TextModel, fields: dict[str, Any], expected: tuple[str, ...]
) -> None:
    async with simulated(text) as (served, _):
        for seed in range(4):
            body = fields | {"seed": seed}
            answer = await served.request("POST", COMPLETE, body | {"prompt": "x"})
            assert answer.json["choices"][0]["text"] in expected
            assert answer.json["choices"][0]["finish_reason"] == "stop"
            answer = await served.request("POST", CHAT, body | {"messages": HI})
            assert answer.json["choices"][0]["message"]["content"] in expected


@async_test
async def test_a_json_object_is_one_or_the_beginning_of_one(text: TextModel) -> None:
    async with simulated(text) as (served, _):
        for fields in (
            {"response_format": {"type": "json_object"}},
            {"structured_outputs": {"json_object": True}},
        ):
            body = {"messages": HI, "max_tokens": 40, **fields}
            choice = (await served.request("POST", CHAT, body)).json["choices"][0]
            assert choice["message"]["content"].startswith("{")
            if choice["finish_reason"] == "stop":
                json.loads(choice["message"]["content"])


@async_test
async def test_fields_that_ask_for_nothing_change_nothing(text: TextModel) -> None:
    async with simulated(text) as (served, _):
        plain = {"messages": HI, "max_tokens": 8, "seed": 1}
        expected = (await served.request("POST", CHAT, plain)).json["choices"]
        for fields in (
            {"response_format": {"type": "text"}},
            {"guided_json": None, "structured_outputs": None, "tools": None},
            {"structured_outputs": {}, "tools": [], "tool_choice": "auto"},
            {"tools": TOOLS, "tool_choice": "none", "parallel_tool_calls": True},
        ):
            answer = await served.request("POST", CHAT, plain | fields)
            assert answer.json["choices"] == expected


@async_test
async def test_ignore_eos_leaves_the_end_to_the_grammar(text: TextModel) -> None:
    async with simulated(text) as (served, _):
        body = {"prompt": "x", "ignore_eos": True, "max_tokens": 12, "seed": 1}
        answer = await served.request("POST", COMPLETE, body | {"guided_regex": "yes|no"})
        assert answer.json["choices"][0]["finish_reason"] == "stop"
        answer = await served.request("POST", COMPLETE, body | {"guided_regex": "[a-z]*"})
        assert answer.json["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@async_test
async def test_a_call_is_forced_whole_and_in_a_stream(text: TextModel, choice: object) -> None:
    async with simulated(text) as (served, _):
        names = set()
        for seed in range(8):
            body = {"messages": HI, "tools": TOOLS, "tool_choice": choice, "seed": seed}
            answer = await served.request("POST", CHAT, body)
            (whole,) = answer.json["choices"]
            assert whole["finish_reason"] == "tool_calls"
            assert whole["message"]["content"] is None
            (call,) = whole["message"]["tool_calls"]
            names.add(call["function"]["name"])
            if call["function"]["name"] == "set":
                check(call["function"]["arguments"])
            else:
                assert call["function"]["arguments"] == "{}"
            streamed = await served.request("POST", CHAT, body | {"stream": True})
            assert told(streamed.events) == (
                "",
                [(call["function"]["name"], call["function"]["arguments"])],
                "tool_calls",
            )
        assert names == ({"set", "stop"} if choice == "required" else {"set"})


def told(events: list[Any]) -> tuple[str, list[tuple[str, str]], str]:
    """Return what a client makes of a stream: text, calls, the reason of its end."""
    text, calls, finish, ids = "", dict[int, list[str]](), "", set()
    for event in events:
        for choice in event["choices"]:
            delta = choice["delta"]
            text += delta.get("content") or ""
            finish = choice["finish_reason"] or finish
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    ids.add(call["id"])
                    assert call["type"] == "function"
                    calls[call["index"]] = [call["function"]["name"], ""]
                calls[call["index"]][1] += call["function"]["arguments"]
    assert len(ids) == len(calls)
    return text, [(name, arguments) for name, arguments in calls.values()], finish


@async_test
async def test_a_call_that_the_model_begins_by_itself_is_told_behind_its_text(
    text: TextModel,
) -> None:
    said = 'Let me see.<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    async with serving(text) as served:
        for stream in (False, True):
            answer = await served.chat(said, tools=TOOLS, stream=stream)
            request = served.replica.submitted[-1]
            assert request.constraint is not None
            assert request.constraint.kind is ConstraintKind.GRAMMAR
            assert "You can call functions." in text.tokenizer.decode(request.prompt)
            expected = ("Let me see.", [("stop", "{}")], "tool_calls")
            if stream:
                assert told(answer.events) == expected
            else:
                (choice,) = answer.json["choices"]
                assert choice["message"]["content"] == "Let me see."
                (call,) = choice["message"]["tool_calls"]
                assert call["function"] == {"name": "stop", "arguments": "{}"}
                assert choice["finish_reason"] == "tool_calls"
        answer = await served.chat("No.", tools=TOOLS)
        (choice,) = answer.json["choices"]
        assert choice["message"] == {"content": "No.", "role": "assistant", "refusal": None}
        assert choice["finish_reason"] == "stop"


@async_test
async def test_calls_and_answers_of_tools_may_stand_in_a_conversation(text: TextModel) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "stop", "arguments": "{}"}}
    talk = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": "c1"},
    ]
    async with serving(text) as served:
        await served.chat(messages=talk)
        prompt = text.tokenizer.decode(served.replica.submitted[-1].prompt)
        assert '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>' in prompt
        assert "<tool_response>\ndone\n</tool_response>" in prompt
        for param, wrong in {
            "messages[0].tool_calls": {"role": "user", "content": "x", "tool_calls": [call]},
            "messages[0].tool_calls[0].function.arguments": {
                "role": "assistant",
                "tool_calls": [{**call, "function": {"name": "f", "arguments": "{"}}],
            },
        }.items():
            answer = await served.request("POST", CHAT, {"messages": [wrong]})
            assert (answer.status, answer.error["param"]) == (400, param)


LONG_LIST = {"enum": [f"value {index}" for index in range(20_000)]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hostile": ({"guided_regex": "a{1000}{1000}"}, "guided_regex"),
    "no grammar": ({"guided_grammar": "hello"}, "guided_grammar"),
    "long": ({"guided_json": LONG_LIST}, "guided_json"),
    "self": ({"response_format": {"type": "json_schema", "json_schema": {"schema": {
        "$ref": "#"}}}}, "response_format"),
    "deep": ({"guided_json": "[" * 5000}, "guided_json"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "required": ["a"], "properties": {"a": False}}}}]}, "tools"),
    "two": ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    "two in one": ({"structured_outputs": {"regex": "a", "choice": ["a"]}},
        "structured_outputs.choice"),
    "tools and regex": ({"tools": TOOLS, "guided_regex": "a"}, "guided_regex"),
    "stop": ({"guided_regex": "a", "stop": ["a"]}, "stop"),
    "stop of tools": ({"tools": TOOLS, "stop": "a"}, "stop"),
    "stop tokens": ({"guided_regex": "a", "stop_token_ids": [7]}, "stop_token_ids"),
    "unknown kind": ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
}  # fmt: skip


@async_test
async def test_what_cannot_be_held_is_refused_soon_and_others_go_on(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        other = asyncio.create_task(served.chat("fine"))
        for name, (fields, param) in REFUSED.items():
            begun = time.perf_counter()
            answer = await client.request("POST", CHAT, {"messages": HI, **fields})
            assert answer.status == 400, (name, answer.body)
            assert answer.error["param"] == param, (name, answer.error)
            assert time.perf_counter() - begun < 2, name
        assert (await other).json["choices"][0]["message"]["content"] == "fine"
        assert len(served.replica.submitted) == 1


@async_test
async def test_a_grammar_is_tried_once(text: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Constraint] = []

    def count(_: GrammarCompiler, constraint: Constraint) -> None:
        tried.append(constraint)
        if "bad" in constraint.text:
            raise BadGrammar("bad")

    monkeypatch.setattr(GrammarCompiler, "check", count)
    async with serving(text) as served:
        for _ in range(3):
            assert (await served.chat(guided_regex="good")).status == 200
            answer = await served.request("POST", CHAT, {"messages": HI, "guided_regex": "bad"})
            assert answer.status == 400
        value = served.registry.value
        assert value(table.CONSTRAINED, "regex", "taken") == 3
        assert value(table.CONSTRAINED, "regex", "refused") == 3
    assert len(tried) == 2


@async_test
async def test_a_trial_that_takes_too_long_is_a_refusal(
    text: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(_: GrammarCompiler, __: Constraint) -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(5)

    monkeypatch.setattr(GrammarCompiler, "check", hang)
    async with serving(text, GatewayConfig(grammar_seconds=0.05)) as served:
        answer = await served.request("POST", CHAT, {"messages": HI, "guided_regex": "a"})
        assert (answer.status, answer.error["param"]) == (400, "guided_regex")
        assert "took more than" in answer.error["message"]
        answer = await served.request("POST", CHAT, {"messages": HI, "guided_regex": "b"})
        assert answer.status == 503, "nobody has looked at it yet"
        release.set()
        assert (await served.chat()).status == 200


@async_test
async def test_it_can_be_switched_off_and_limited(text: TextModel) -> None:
    body = {"messages": HI, "guided_regex": "abc"}
    for config, word in (
        (GatewayConfig(structured_output=False), "switched off"),
        (GatewayConfig(max_grammar_bytes=2), "at most 2"),
    ):
        async with serving(text, config) as served:
            answer = await served.request("POST", CHAT, body)
            assert (answer.status, answer.error["param"]) == (400, "guided_regex")
            assert word in answer.error["message"]
            assert (await served.chat()).status == 200


@async_test
async def test_a_gateway_without_llguidance_names_what_to_install(
    text: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    async with serving(text) as served:
        answer = await served.request("POST", CHAT, {"messages": HI, "guided_regex": "abc"})
        assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter")
        assert "pip install 'headrace[engine]'" in answer.error["message"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@async_test
async def test_a_replica_may_die_at_any_token_of_a_call(text: TextModel, stream: bool) -> None:
    body = {"messages": HI, "tools": TOOLS, "tool_choice": NAMED, "seed": 4, "stream": stream}

    def calls(answer: Any) -> Any:  # noqa: ANN401
        if stream:
            return told(answer.events)
        (choice,) = answer.json["choices"]
        (call,) = choice["message"]["tool_calls"]
        return call["function"], choice["finish_reason"], answer.json["usage"]

    async with simulated(text) as (served, _):
        expected = calls(await served.request("POST", CHAT, body))
        whole = await served.request("POST", CHAT, body | {"stream": False})
        num_tokens = whole.json["usage"]["completion_tokens"]
        assert num_tokens > 30
    for lived in range(0, num_tokens, 7):
        async with simulated(text, size=2) as (served, replicas):
            replicas[0].tokens_to_live = lived
            asked = asyncio.create_task(served.request("POST", CHAT, body))
            await served.until(lambda: served.registry.value(table.REPLICA_LOSSES, "r0") == 1)
            replicas[1].connect()
            assert calls(await asked) == expected, f"killed after {lived} tokens"


@async_test
async def test_the_openai_package_reads_formats_and_calls(text: TextModel) -> None:
    async with (
        simulated(text) as (served, _),
        openai.AsyncOpenAI(
            api_key="none", base_url=f"http://127.0.0.1:{served.port}/v1", max_retries=0
        ) as client,
    ):
        done = await client.chat.completions.create(
            model="tiny", messages=HI, response_format=FORMAT, seed=1
        )  # type: ignore[call-overload]
        check(done.choices[0].message.content)
        async with client.chat.completions.stream(
            model="tiny", messages=HI, tools=TOOLS, tool_choice=NAMED, seed=1
        ) as stream:  # type: ignore[arg-type]
            final = await stream.get_final_completion()
        (choice,) = final.choices
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls or ()
        assert call.function.name == "set"
        check(call.function.arguments)
        talk = [
            *HI,
            choice.message.model_dump(exclude_unset=True, include={"role", "tool_calls"}),
            {"role": "tool", "tool_call_id": call.id, "content": "done"},
        ]
        again = await client.chat.completions.create(
            model="tiny", messages=talk, tools=TOOLS, tool_choice="required"
        )
        assert again.choices[0].finish_reason == "tool_calls"
