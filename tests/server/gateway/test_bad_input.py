"""Bodies that are wrong: a 400 in OpenAI's shape that names the field, and nothing else happens."""

from __future__ import annotations

import asyncio
import gzip
import time
from typing import TYPE_CHECKING

import pytest
from gateway_serving import CHAT, COMPLETE, on_both_loops, serving

from headrace.server.gateway.api.decoding import BodyDecoder
from headrace.server.gateway.api.refusals import REFUSED
from headrace.server.gateway.api.requests import ChatCompletionRequest
from headrace.testing.async_test import async_test

if TYPE_CHECKING:
    from headrace.model.text import TextModel

MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


def chat(fields: bytes) -> bytes:
    return b"{" + MESSAGES + b"," + fields + b"}"


OUT_OF_RANGE = {
    "temperature": [b"NaN", b"Infinity", b"-Infinity", b"1e400", b'"1"', b"-0.1", b"2.1", b"true"],
    "top_p": [b"NaN", b"0", b"1.01", b'"x"', b"[]"],
    "top_k": [b"-2", b"1.5", b"1e400", b"9" * 5000],
    "min_p": [b"-0.1", b"1.1", b"NaN"],
    "presence_penalty": [b"-2.1", b"2.1", b"NaN", b"{}"],
    "frequency_penalty": [b"-2.1", b"2.1", b"Infinity"],
    "repetition_penalty": [b"0", b"10.1", b"NaN"],
    "logit_bias": [b'{"5":NaN}', b'{"5":101}', b'{"x":1}', b'{"-1":1}', b"[]", b'{"304":1}'],
    "max_tokens": [b"0", b"-1", b"9223372036854775808", b"1" + b"0" * 30, b'"7"', b"1.5"],
    "max_completion_tokens": [b"0", b"-1"],
    "min_tokens": [b"-1", b"2000"],
    "n": [b"0", b"-1", b"17", b"1000000000", b"true"],
    "seed": [b"9223372036854775808", b'"x"', b"1.5"],
    "top_logprobs": [b"21", b"-1", b"1000000", b"1"],
    "logprobs": [b"1", b'"true"'],
    "stop": [b"5", b'""', b"[1]", b'["a",""]', b'"%s"' % (b"x" * 257)],
    "stop_token_ids": [b"[-1]", b"[304]", b"5", b'["a"]', b"[" + b"1," * 256 + b"1]"],
    "cache_salt": [b'""', b'"a b"', b'"a\\n"', b'"%s"' % (b"x" * 129), b'"\xc3\xa9"'],
    "timeout": [b"0", b"-1", b"NaN"],
    "ttft_ms": [b"0", b"-1", b"NaN", b"1e400", b"86400001", b'"500"', b"true", b"[]"],
    "itl_ms": [b"0", b"-0.5", b"Infinity", b'"x"'],
    "deadline_ms": [b"0", b"-1", b"NaN", b"{}"],
    "service_tier": [b'"scale"', b"5", b'""'],
    "priority_class": [b'"urgent"', b"1", b'""'],
    "stream": [b'"yes"', b"1"],
    "stream_options": [b'{"include_usage":true}', b'"x"'],
    "model": [b'""', b"5"],
    "response_format": [b'{"type":"xml"}', b'{"type":"json_schema"}', b"{}"],
}
CASES = [(field, value) for field, values in OUT_OF_RANGE.items() for value in values]


@async_test
async def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        for field, value in CASES:
            answer = await client.request("POST", CHAT, chat(b'"%s":%s' % (field.encode(), value)))
            assert answer.status == 400, (field, value, answer.body)
            param = str(answer.error["param"])
            assert param.split("[")[0].split(".")[0] == field, (field, value, answer.body)
        assert served.replica.submitted == []


def many(count: int, item: bytes) -> bytes:
    return b",".join([item] * count)


MALFORMED = {
    "empty": b"",
    "no-json": b"hello",
    "cut-off": b'{"messages":[',
    "array": b"[]",
    "number": b"5",
    "null": b"null",
    "text-behind": b"{" + MESSAGES + b"} x",
    "single-quotes": b"{'messages':[]}",
    "no-messages": b'{"model":"tiny"}',
    "no-message": b'{"messages":[]}',
    "message-is-text": b'{"messages":["hi"]}',
    "messages-is-object": b'{"messages":{"role":"user","content":"hi"}}',
    "unknown-role": b'{"messages":[{"role":"boss","content":"hi"}]}',
    "tool-without-content": b'{"messages":[{"role":"tool"}]}',
    "no-content": b'{"messages":[{"role":"user"}]}',
    "image": b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":"x"}]}]}',
    "tool-calls": b'{"messages":[{"role":"assistant","content":"x","tool_calls":[{}]}]}',
    "invalid-utf-8": b'{"messages":[{"role":"user","content":"\xff"}]}',
    "invalid-utf-8-in-unknown-field": chat(b'"x":"\xff"'),
    "lone-surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "nested-deeply": chat(b'"x":' + b"[" * 100_000),
    "nested-deeply-in-a-field": b'{"messages":' + b"[" * 100_000,
    "many-keys": chat(many(100_000, b'"k":1').replace(b'"k"', b'"k%d"', 1) % 1),
    "many-different-keys": chat(b",".join(b'"k%d":1' % index for index in range(100_000))),
    "many-stops": chat(b'"stop":[' + many(100_000, b'"a"') + b"]"),
    "many-biases": chat(
        b'"logit_bias":{' + b",".join(b'"%d":1' % index for index in range(100_000)) + b"}"
    ),
    "many-messages": b'{"messages":[' + many(4097, b'{"role":"user","content":""}') + b"]}",
    "nul-outside-text": b"{" + MESSAGES + b"}\0",
    "unknown-model": chat(b'"model":"gpt-5"'),
    "two-limits": chat(b'"max_tokens":1,"max_completion_tokens":2'),
    "min-over-max": chat(b'"max_tokens":1,"min_tokens":2'),
}
ALLOWED = {"many-keys"}  # equal keys: the last one counts


@on_both_loops
async def test_a_malformed_body_is_refused_and_other_requests_go_on(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        other = asyncio.create_task(served.chat("fine"))
        for name, body in MALFORMED.items():
            if name in ALLOWED:
                continue
            answer = await client.request("POST", CHAT, body)
            expected = 404 if name == "unknown-model" else 400
            assert answer.status == expected, (name, answer.body[:200])
            assert answer.error["type"] == "invalid_request_error"
            assert answer.headers["x-should-retry"] == "false"
        assert (await other).json["choices"][0]["message"]["content"] == "fine"


def test_a_body_nested_100_000_deep_is_refused_quickly() -> None:
    decode = BodyDecoder(ChatCompletionRequest)
    begun = time.perf_counter()
    with pytest.raises(Exception, match="nested too deeply"):
        decode(MALFORMED["nested-deeply"])
    assert time.perf_counter() - begun < 0.5


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
@async_test
async def test_a_body_that_does_not_say_it_is_json_is_refused(
    text: TextModel, content_type: str
) -> None:
    async with serving(text) as served:
        answer = await served.request("POST", CHAT, chat(b""), content_type=content_type)
        assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


@async_test
async def test_a_gzip_bomb_is_refused_unread(text: TextModel) -> None:
    async with serving(text) as served:
        body = gzip.compress(b" " * 10_000_000)
        answer = await served.request("POST", CHAT, body, content_encoding="gzip")
        assert answer.status == 415


@async_test
async def test_no_message_repeats_more_than_200_characters_of_the_input(text: TextModel) -> None:
    async with serving(text) as served:
        long = b"z" * 5000
        for body in (
            chat(b'"model":"%s"' % long[:256]),
            chat(b'"response_format":{"type":"%s"}' % long),
            b'{"messages":[{"role":"%s","content":"hi"}]}' % long,
            b'{"messages":[{"role":"user","content":[{"type":"%s"}]}]}' % long,
        ):
            answer = await served.request("POST", CHAT, body)
            assert answer.error["message"].count("z") <= 200
        answer = await served.request("GET", "/" + "z" * 5000)
        assert answer.error["message"].count("z") <= 200


@async_test
async def test_fields_that_have_no_effect_here_are_refused_unless_they_ask_for_nothing(
    text: TextModel,
) -> None:
    async with serving(text) as served:
        client = await served.connect()
        for name, harmless in REFUSED.items():
            if name in ("tools", "tool_choice"):  # which a chat carries out
                answer = await client.request("POST", COMPLETE, {"prompt": "x", name: {"a": 1}})
                assert answer.error["param"] == name
                continue
            answer = await client.request("POST", CHAT, chat(b'"%s":{"a":1}' % name.encode()))
            assert answer.status == 400, name
            assert (answer.error["code"], answer.error["param"]) == ("unsupported_parameter", name)
            for value in (b"null", *harmless):
                talk = asyncio.create_task(
                    client.request("POST", CHAT, chat(b'"%s": %s' % (name.encode(), value)))
                )
                await served.answer_with("ok")
                assert (await talk).status == 200, (name, value)


@async_test
async def test_unknown_fields_are_ignored(text: TextModel) -> None:
    async with serving(text) as served:
        answer = await served.chat(user="me", metadata={"a": "b"}, frobnicate=[1, {"x": 2}])
        assert answer.status == 200


@async_test
async def test_a_prompt_longer_than_the_context_is_refused(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        for body, path, param in (
            ({"messages": [{"role": "user", "content": "the " * 1100}]}, CHAT, "messages"),
            ({"messages": [{"role": "user", "content": "x" * 3_000_000}]}, CHAT, "messages"),
            ({"prompt": "y" * 1024}, COMPLETE, "prompt"),
            ({"prompt": list(range(3, 300)) * 4}, COMPLETE, "prompt"),
            ({"prompt": ["hi", "y" * 2000]}, COMPLETE, "prompt"),
            ({"prompt": "hi", "max_tokens": 1023}, COMPLETE, "max_tokens"),
        ):
            answer = await client.request("POST", path, body)
            assert answer.status == 400, answer.body
            assert answer.error["code"] == "context_length_exceeded"
            assert answer.error["param"] == param


@async_test
async def test_a_huge_prompt_does_not_hold_up_the_loop(text: TextModel) -> None:
    """3 MB cannot fit by their bytes alone: refused before anything is tokenised."""
    async with serving(text) as served:
        client = await served.connect()
        body = {"prompt": "the water " * 300_000}
        client.ask("POST", "/tokenize", body)
        await client.writer.drain()
        answer = await client.answer("POST")
        assert answer.error["code"] == "context_length_exceeded"
        assert "bytes" in answer.error["message"]


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [[]],
        "",
        [""],
        [1, "a"],
        ["a", [1]],
        [-1],
        [304],
        [[304]],
        [1.5],
        5,
        None,
        {},
        ["a"] * 65,
    ],
)
@async_test
async def test_a_prompt_of_the_wrong_kind_is_refused(text: TextModel, prompt: object) -> None:
    async with serving(text) as served:
        answer = await served.request("POST", COMPLETE, {"prompt": prompt})
        assert answer.status == 400, answer.body
        assert str(answer.error["param"]).split("[")[0] == "prompt"


@async_test
async def test_nul_and_emoji_reach_the_model_and_come_back(text: TextModel) -> None:
    async with serving(text) as served:
        odd = "\0 \U0001f600 \u202e \r\n"
        talk = asyncio.create_task(served.request("POST", COMPLETE, {"prompt": odd}))
        await served.answer_with(odd)
        assert (await talk).json["choices"][0]["text"] == odd
        assert served.text.tokenizer.decode(served.replica.submitted[0].prompt) == odd
