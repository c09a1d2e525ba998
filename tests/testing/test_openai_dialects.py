"""The manners of other servers, as the scripted replica imitates them."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from headrace.server.gateway.foreign.metrics import read_load
from headrace.testing.openai_dialects import beginning_of, metrics_page, output_id, prompt_ids
from headrace.testing.openai_replica import expected_text

MESSAGES = b'[{"role": "user", "content": "hi"}]'
SAID = expected_text(json.loads(MESSAGES), 3)
LONGER = (
    MESSAGES[:-1]
    + b","
    + json.dumps({"role": "assistant", "content": SAID}, separators=(",", ":")).encode()
    + b"]"
)


@pytest.mark.parametrize("server", ["vllm", "sglang", "llamacpp"])
def test_a_chat_goes_on_from_its_last_message_where_it_is_told_to(server: str) -> None:
    whole = beginning_of(server, MESSAGES, goes_on=False)
    assert whole.seed == sha256(MESSAGES).digest()
    part = beginning_of(server, LONGER, goes_on=True)
    assert (part.seed, part.num_before) == (whole.seed, 3)
    assert part.prompt_tokens == whole.prompt_tokens + 3
    assert beginning_of(server, LONGER, goes_on=False).num_before == 0


@pytest.mark.parametrize("server", ["fake", "tgi"])
def test_others_take_it_for_a_new_question(server: str) -> None:
    assert beginning_of(server, LONGER, goes_on=True).seed == sha256(LONGER).digest()


def test_a_completion_goes_on_from_its_first_words() -> None:
    prompt = b'"A mill on"'
    said = expected_text("A mill on", 4).encode()
    part = beginning_of("fake", prompt[:-1] + said + b'"', goes_on=False)
    assert (part.seed, part.num_before) == (sha256(prompt).digest(), 4)
    other = beginning_of("fake", b'"A mill1 on2"', goes_on=False)
    assert other.num_before == 0


def test_ids_are_those_of_the_prompt_and_the_output() -> None:
    whole = beginning_of("vllm", b'"A mill on"', goes_on=False)
    ids = [*prompt_ids(whole), output_id(0), output_id(1)]
    part = beginning_of("vllm", json.dumps(ids).encode(), goes_on=False)
    assert (part.seed, part.num_before) == (whole.seed, 2)


@pytest.mark.parametrize("server", ["vllm", "sglang", "llamacpp", "tgi"])
def test_metrics_are_those_that_a_gateway_understands(server: str) -> None:
    page = metrics_page(server, running=3, waiting=2, tokens=9)
    assert page is not None
    load = read_load(page)
    assert load is not None
    assert (load.running, load.waiting, load.progress) == (3, 2, 9.0)


def test_a_server_without_manners_has_no_metrics() -> None:
    assert metrics_page("fake", running=0, waiting=0, tokens=0) is None
