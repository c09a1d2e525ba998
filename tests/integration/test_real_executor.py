"""Whole servers on OpenVINO: a tiny random model, and the default model where it may be fetched."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from http_client import complete, get, metric, stream

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


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_default_model_answers_a_question(environment: Mapping[str, str]):
    own_cache = {
        name: value
        for name, value in environment.items()
        if name not in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    } | {name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME") if name in os.environ}
    with running_server(environment=own_cache) as server:
        status, answer = complete(
            server,
            "The capital of France is",
            model="smollm2-135m-instruct",
            max_tokens=5,
            temperature=0,
        )
        assert status == 200
        assert "Paris" in answer["choices"][0]["text"]
