"""Wherever a stream is cut, its client has one text: what came, and what the next server adds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.server.gateway.foreign.answers import Billing, StreamJudge
from headrace.server.gateway.foreign.cards import read_cards
from headrace.server.gateway.foreign.config import Migration
from headrace.server.gateway.foreign.continuing import CHAT_PATH, COMPLETE_PATH, resume
from headrace.server.gateway.foreign.resuming import CannotResume, KeptStream, NothingKept, Sent

if TYPE_CHECKING:
    from headrace.server.gateway.foreign.cards import ModelCard

DONE = b"data: [DONE]\n\n"
PIECES = st.lists(
    st.text(alphabet='ab \n\té🙂"\\', min_size=1, max_size=4), min_size=1, max_size=12
)
PATHS = st.sampled_from([CHAT_PATH, COMPLETE_PATH])


def card(server: str = "vllm", limit: int | None = 2048) -> ModelCard:
    content = {"id": "m", "owned_by": server, "max_model_len": limit}
    return read_cards(json.dumps({"data": [content]}).encode())["m"]


def event(path: str, name: str, choice: dict[str, object], **fields: object) -> bytes:
    content = {"id": name, "created": len(name), "model": name, "choices": [choice], **fields}
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def said(path: str, name: str, text: str, **fields: object) -> bytes:
    piece = {"delta": {"content": text}} if path == CHAT_PATH else {"text": text}
    return event(path, name, {"index": 0, "finish_reason": None, **piece, **fields})


def opening(path: str, name: str) -> list[bytes]:
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    return [event(path, name, role)] if path == CHAT_PATH else []


def ending(path: str, name: str) -> bytes:
    last = {"delta": {}} if path == CHAT_PATH else {"text": ""}
    end = event(path, name, {"index": 0, "finish_reason": "stop", **last})
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    return end + event(path, name, {}, usage=usage).replace(b'"choices":[{}]', b'"choices":[]')


def request(path: str, **fields: object) -> bytes:
    prompt = (
        {"messages": [{"role": "user", "content": "x"}]} if path == CHAT_PATH else {"prompt": "x"}
    )
    return json.dumps({"model": "m", "stream": True, **prompt, **fields}).encode()


def text_of(events: bytes) -> str:
    text = ""
    for part in events.split(b"\n\n"):
        if part.startswith(b"data: {"):
            for choice in json.loads(part[6:])["choices"]:
                text += choice.get("delta", choice).get("content") or choice.get("text") or ""
    return text


def seen_by(body: bytes, path: str) -> str:
    """The part of the answer that a server finds in a continuation."""
    asked = json.loads(body)
    if path == COMPLETE_PATH:
        return str(asked["prompt"])[1:]
    last = asked["messages"][-1]
    return str(last["content"]) if last["role"] == "assistant" else ""


@settings(deadline=None)
@given(PIECES, PIECES, PATHS, st.data())
def test_a_stream_in_two_parts_has_the_text_of_one(
    first: list[str], second: list[str], path: str, data: st.DataObject
) -> None:
    events = opening(path, "one") + [said(path, "one", piece) for piece in first]
    kept, client = KeptStream(max_bytes=10_000), b""
    for one in events:
        kept.note(one)
        client += one
    asked = resume(path, request(path, max_tokens=50), kept.sent(), card(), Migration.BEST_EFFORT)
    whole = "".join(first) + "".join(second)
    known = seen_by(bytes(asked.body), asked.path)
    assert whole.startswith(known)
    rest = whole[len(known) :]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rest)), max_size=4)))
    parts = [rest[a:b] for a, b in zip([0, *cuts], [*cuts, len(rest)], strict=True)]
    answer = b"".join(opening(path, "two"))
    answer += b"".join(said(path, "two", part) for part in parts) + ending(path, "two") + DONE
    judge, at = StreamJudge(max_event_bytes=10_000), 0
    while at < len(answer):
        step = data.draw(st.integers(1, len(answer)))
        client += asked.teller.take(judge.take(answer[at : at + step]))
        at += step
    assert judge.is_done
    assert text_of(client) == whole
    assert client.endswith(DONE)
    assert client.count(b"[DONE]") == client.count(b'"stop"') == 1
    assert client.count(b'"role"') == (path == CHAT_PATH)
    assert b'"two"' not in client
    assert asked.teller.billing(judge.billing) == Billing(
        max(0, 5 - len(first)), 3 + len(first), None
    )


def test_a_server_that_says_the_message_again_is_not_heard_twice() -> None:
    kept = KeptStream(max_bytes=1000)
    text = "The colours are: red, orange"
    kept.note(said(CHAT_PATH, "one", text))
    llama = card("llamacpp")
    asked = resume(CHAT_PATH, request(CHAT_PATH), kept.sent(), llama, Migration.BEST_EFFORT)
    told = asked.teller.take(said(CHAT_PATH, "two", f"{text}, green"))
    told += asked.teller.take(said(CHAT_PATH, "two", text))
    assert text_of(told) == f", green{text}"


UNFIT = [
    (said(CHAT_PATH, "a", "x", index=1), "several choices"),
    (event(CHAT_PATH, "a", {"index": 0, "delta": {}, "finish_reason": "stop"}), "its end was sent"),
    (event(CHAT_PATH, "a", {"index": 0, "delta": {"tool_calls": [{}]}}), "calls tools"),
    (event(CHAT_PATH, "a", {"index": 0, "delta": {"reasoning_content": "hm"}}), "more than a text"),
    (b'data: {"choices": 7}\n\n', "unknown form"),
    (said(CHAT_PATH, "a", "x" * 2000), "over 1000 bytes"),
]


@pytest.mark.parametrize(("sent", "reason"), UNFIT)
def test_streams_that_are_more_than_one_text_cannot_go_on(sent: bytes, reason: str) -> None:
    kept = KeptStream(max_bytes=1000)
    kept.note(sent)
    with pytest.raises(CannotResume, match=reason):
        kept.sent()
    assert reason in kept.why_not
    kept.note(sent)  # and more of it changes nothing
    with pytest.raises(CannotResume, match=reason):
        kept.sent()


def test_long_streams_are_read_on_the_way_and_little_is_kept() -> None:
    kept = KeptStream(max_bytes=1 << 20)
    for number in range(5000):
        kept.note(said(CHAT_PATH, "a", f" word{number}", logprobs={"content": "x" * 100}))
    sent = kept.sent()
    assert sent.num_tokens == 5000
    assert sent.text == "".join(f" word{number}" for number in range(5000))
    assert sent.id == "a"


def test_nothing_kept_is_no_hope() -> None:
    kept = NothingKept("because")
    kept.note(b"x")
    assert kept.why_not == "because"
    with pytest.raises(CannotResume, match="because"):
        kept.sent()


@pytest.mark.parametrize(
    ("path", "fields", "reason"),
    [
        (CHAT_PATH, {"n": 2}, "several choices"),
        (COMPLETE_PATH, {"best_of": 2}, "several choices"),
        (COMPLETE_PATH, {"echo": True}, "echo"),
        (COMPLETE_PATH, {"suffix": "x"}, "suffix"),
        (COMPLETE_PATH, {"prompt": ["a", "b"]}, "not one text"),
        (COMPLETE_PATH, {"prompt": [1, 2]}, "not one text"),
        (CHAT_PATH, {"response_format": {"type": "json_schema", "a": "text"}}, "response_format"),
        (CHAT_PATH, {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        (CHAT_PATH, {"max_tokens": 1}, "only its end is missing"),
    ],
)
def test_requests_that_cannot_be_asked_in_the_middle(
    path: str, fields: dict[str, object], reason: str
) -> None:
    sent = Sent(id="a", texts=["x"], num_events=1)
    with pytest.raises(CannotResume, match=reason):
        resume(path, request(path, **fields), sent, card(), Migration.BEST_EFFORT)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "tools": [], "echo": False, "suffix": None, "response_format": {"type": "text"}},
        {"max_tokens": 2, "min_tokens": 2, "max_completion_tokens": None},
    ],
)
def test_what_is_there_without_effect_is_no_hindrance(fields: dict[str, object]) -> None:
    sent = Sent(id="a", texts=["x"], num_events=1)
    asked = resume(CHAT_PATH, request(CHAT_PATH, **fields), sent, card(), Migration.BEST_EFFORT)
    body = json.loads(asked.body)
    if "min_tokens" in fields:
        assert (body["max_tokens"], body["min_tokens"]) == (1, 1)


def test_a_server_that_cannot_go_on_with_chats_is_not_asked() -> None:
    sent = Sent(id="a", texts=["x"], num_events=1)
    for server in ("tgi", "headrace", "somebody"):
        with pytest.raises(CannotResume, match="cannot go on with a chat"):
            resume(CHAT_PATH, request(CHAT_PATH), sent, card(server), Migration.BEST_EFFORT)


def test_ids_go_on_as_a_completion_with_a_limit() -> None:
    sent = Sent(id="a", texts=["x"], num_events=1, token_ids=[7], prompt_ids=[1, 2])
    asked = resume(CHAT_PATH, request(CHAT_PATH), sent, card(), Migration.EXACT)
    body = json.loads(asked.body)
    assert asked.path == COMPLETE_PATH
    assert (body["prompt"], body["max_tokens"]) == ([1, 2, 7], 2045)
    told = asked.teller.take(said(COMPLETE_PATH, "two", "y", token_ids=[8]))
    assert b'"delta":{"content":"y"}' in told
    assert b"chat.completion.chunk" in told


@pytest.mark.parametrize(
    ("sent", "limit", "fields", "reason"),
    [
        (Sent(texts=["x"], num_events=1, has_all_ids=False, prompt_ids=[1]), 9, {}, "not all"),
        (Sent(texts=["x"], num_events=1, token_ids=[7]), 9, {}, "not all"),
        (Sent(texts=["x"], token_ids=[7], prompt_ids=[1]), None, {}, "how long"),
        (Sent(texts=["x"], token_ids=[7], prompt_ids=[1]), 9, {"logprobs": True}, "logprobs"),
    ],
)
def test_ids_that_are_not_all_there_are_not_enough(
    sent: Sent, limit: int | None, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(CannotResume, match=reason):
        resume(CHAT_PATH, request(CHAT_PATH, **fields), sent, card(limit=limit), Migration.EXACT)
