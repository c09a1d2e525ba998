"""Whole servers on OpenVINO: a tiny random model, and the default model where it may be fetched."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from http_client import chat, complete, get, metric, stream

from headrace.testing.server_process import running_server, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from headrace.testing.server_process import ServerProcess


@pytest.fixture(scope="module")
def tiny(tiny_gguf: Path, environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    arguments = (str(tiny_gguf), "--kv-cache-tokens", "4096", "--threads", "1")
    exact = {"HEADRACE_ENGINE_PRECISION": "f32", "HEADRACE_ENGINE_KV_PRECISION": "f32"}
    with running_server(*arguments, environment={**environment, **exact}) as server:
        yield server


@pytest.mark.xdist_group("tiny")
def test_greedy_answers_are_the_same_streamed_or_not_alone_or_in_company(tiny: ServerProcess):
    fields = {"max_tokens": 24, "temperature": 0}
    _, alone = complete(tiny, "the rain in", **fields)
    with stream(tiny, "the rain in", **fields) as events, stream(tiny, "a dog", **fields) as other:
        text = "".join(event["choices"][0]["text"] for event in events if event)
        assert list(other)[-1] is None
    assert alone["choices"][0]["text"] == text
    assert alone["usage"]["completion_tokens"] == 24


SAMPLED = {"max_tokens": 24, "temperature": 1.0, "seed": 5, "ignore_eos": True}


@pytest.mark.xdist_group("tiny")
@pytest.mark.parametrize(
    "field",
    [
        {"seed": 6},
        {"temperature": 0},
        {"top_k": 1},
        {"top_p": 0.01},
        {"min_p": 0.99},
        {"presence_penalty": 2},
        {"frequency_penalty": 2},
        {"repetition_penalty": 5},
        {"logit_bias": {"65": 100}},
        {"max_tokens": 3},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_field_of_a_request_changes_the_tokens(tiny: ServerProcess, field: dict[str, object]):
    texts = []
    for fields in (SAMPLED, SAMPLED, SAMPLED | field):
        status, answer = complete(tiny, "the rain in", **fields)
        assert status == 200
        texts.append(answer["choices"][0]["text"])
    assert texts[0] == texts[1]  # so that it is the field, and not chance
    assert texts[0] != texts[2]


@pytest.mark.xdist_group("tiny")
def test_a_client_that_hangs_up_frees_its_blocks(tiny: ServerProcess):
    with stream(tiny, "hang up", max_tokens=900) as events:
        next(events)
    complete(tiny, max_tokens=1)  # so that there is news of the engine
    wait_until(lambda: metric(tiny, "headrace_kv_blocks", state="used") == 0)
    assert get(tiny, "/health")[0] == 200


@pytest.mark.xdist_group("tiny")
def test_a_file_with_a_model_that_needs_more_memory_than_there_is_is_refused(
    tiny_gguf: Path, environment: Mapping[str, str]
):
    arguments = (str(tiny_gguf), "--kv-cache-tokens", "1000m")
    with (
        pytest.raises(RuntimeError, match=r"headrace: the model needs about \d+ MiB"),
        running_server(*arguments, environment=environment),
    ):
        pass


@pytest.fixture(scope="module")
def default_model(environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    own_cache = {
        name: value
        for name, value in environment.items()
        if name not in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    } | {name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME") if name in os.environ}
    with running_server(environment=own_cache) as server:
        yield server


@pytest.mark.model
@pytest.mark.xdist_group("default model")
@pytest.mark.timeout(600)
def test_the_default_model_answers_a_question(default_model: ServerProcess):
    status, answer = complete(
        default_model,
        "The capital of France is",
        model="smollm2-135m-instruct",
        max_tokens=5,
        temperature=0,
    )
    assert status == 200
    assert "Paris" in answer["choices"][0]["text"]


ASKED = [{"role": "user", "content": "Describe Ann, who is 31 and lives in Rome, as JSON."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["Rome", "Paris"]},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "register", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "give_up"}},
]
NAMED = {"type": "function", "function": {"name": "register"}}


def check(text: str) -> None:
    """Assert that a text matches SCHEMA."""
    value = json.loads(text)
    assert value.keys() == {"name", "age", "city"}
    assert isinstance(value["name"], str)
    assert 0 <= value["age"] <= 150
    assert value["city"] in ("Rome", "Paris")


@pytest.mark.model
@pytest.mark.xdist_group("default model")
@pytest.mark.timeout(600)
def test_the_default_model_is_forced_into_valid_json_at_any_temperature(
    default_model: ServerProcess,
):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    ended = 0
    for temperature in (0, 0.7, 1.3, 2):
        status, answer = chat(
            default_model, ASKED, response_format=form, temperature=temperature, seed=3, n=4,
            max_tokens=80,
        )  # fmt: skip
        assert status == 200
        for choice in answer["choices"]:
            if choice["finish_reason"] == "stop":
                ended += 1
                check(choice["message"]["content"])
            else:
                assert choice["message"]["content"].startswith('{"name": "')
    assert ended >= 12


@pytest.mark.model
@pytest.mark.xdist_group("default model")
@pytest.mark.timeout(600)
def test_the_default_model_calls_the_tool_that_it_must(default_model: ServerProcess):
    for choice in (NAMED, "required"):
        for temperature in (0, 1):
            _, answer = chat(
                default_model, ASKED, tools=TOOLS, tool_choice=choice, temperature=temperature,
                seed=1, max_tokens=100,
            )  # fmt: skip
            (told,) = answer["choices"]
            assert told["finish_reason"] == "tool_calls"
            (call,) = told["message"]["tool_calls"]
            if call["function"]["name"] == "register":
                check(call["function"]["arguments"])
            else:
                assert choice == "required"
                assert call["function"] == {"name": "give_up", "arguments": "{}"}


@pytest.mark.model
@pytest.mark.xdist_group("default model")
@pytest.mark.timeout(600)
def test_a_hostile_grammar_is_refused_while_the_default_model_goes_on(
    default_model: ServerProcess,
):
    with stream(default_model, "The rain", max_tokens=40, temperature=0) as events:
        next(events)
        status, answer = complete(default_model, guided_regex="a{1000}{1000}")
        assert (status, answer["error"]["param"]) == (400, "guided_regex")
        assert list(events)[-1] is None
