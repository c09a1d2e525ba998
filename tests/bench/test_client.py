"""The client against a real socket: what it sends, what it takes, what it makes of trouble."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from fake_server import (
    OK,
    FakeServer,
    Seen,
    chunked,
    sse,
    stream_tokens,
    text_chunk,
    write_json,
)

from headrace.bench.answer import describe_error
from headrace.bench.client import Call, Client, Outcome
from headrace.bench.config import Endpoint, Target
from headrace.bench.http import ExchangeFailed, FailureKind, Origin, parse_base_url
from headrace.clock import MonotonicClock

if TYPE_CHECKING:
    from collections.abc import Callable

CALL = Call(prompt="Hello", max_tokens=4)


def ask(
    respond: Callable,
    *calls: Call,
    **target: Any,  # noqa: ANN401
) -> tuple[list[Outcome], FakeServer]:
    async def scenario() -> tuple[list[Outcome], FakeServer]:
        async with FakeServer(respond) as server:
            where = Target(base_url=server.url, **target)
            client = Client(target=where, model="tiny", clock=MonotonicClock())
            outcomes = [await client.generate(call) for call in calls or (CALL,)]
            client.close()
            return outcomes, server

    return asyncio.run(scenario())


def raw(data: bytes) -> Callable:
    return lambda _seen, writer: writer.write(data)


def test_a_stream_gives_a_time_for_each_piece_and_the_usage():
    [outcome], server = ask(stream_tokens)
    assert outcome.failure is None
    assert outcome.text == " t0 t1 t2 t3"
    assert len(outcome.piece_times) == 4
    assert list(outcome.piece_times) == sorted(outcome.piece_times)
    assert outcome.started_at < outcome.piece_times[0] <= outcome.ended_at
    counts = (outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens)
    assert counts == (7, 4, 3)
    assert outcome.finish_reason == "length"
    [seen] = server.seen
    assert seen.path == "/v1/completions"
    assert seen.headers["connection"] == "close"
    assert seen.body == {
        "model": "tiny",
        "max_tokens": 4,
        "prompt": "Hello",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_chat_sends_messages_and_its_role_chunk_is_no_token():
    call = Call(
        prompt=[("system", "Be brief."), ("user", "Hi")], max_tokens=2, endpoint=Endpoint.CHAT
    )
    [outcome], server = ask(stream_tokens, call)
    assert len(outcome.piece_times) == 2
    assert server.seen[0].path == "/v1/chat/completions"
    assert server.seen[0].body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_fields_and_key_are_sent():
    call = Call(prompt="x", max_tokens=1, fields={"ignore_eos": True, "top_k": 3})
    _, server = ask(stream_tokens, call, api_key="sk-1")
    assert server.seen[0].headers["authorization"] == "Bearer sk-1"
    assert (server.seen[0].body["ignore_eos"], server.seen[0].body["top_k"]) == (True, 3)


def test_a_whole_answer_is_read_too():
    async def respond(seen: Seen, writer: asyncio.StreamWriter):
        assert "stream" not in seen.body
        usage = {"prompt_tokens": 2, "completion_tokens": 5}
        choice = {"message": {"content": "Five tokens"}, "finish_reason": "stop"}
        await write_json(writer, {"choices": [choice], "usage": usage})

    call = Call(prompt="x", max_tokens=5, endpoint=Endpoint.CHAT, stream=False)
    [outcome], _ = ask(respond, call)
    assert (outcome.text, outcome.output_tokens) == ("Five tokens", 5)


@pytest.mark.parametrize("keep_alive", [True, False])
def test_connections_are_reused_only_if_asked_to(keep_alive: bool):
    outcomes, server = ask(stream_tokens, CALL, CALL, CALL, keep_alive=keep_alive)
    assert all(outcome.failure is None for outcome in outcomes)
    assert server.connections == (1 if keep_alive else 3)


def test_a_connection_that_went_stale_is_replaced():
    async def respond(seen: Seen, writer: asyncio.StreamWriter):
        await stream_tokens(seen, writer)
        await writer.drain()
        writer.close()

    outcomes, server = ask(respond, CALL, CALL, keep_alive=True)
    assert [outcome.failure for outcome in outcomes] == [None, None]
    assert server.connections == 2


@pytest.mark.parametrize("cut_after", [0, 1, 3])
def test_a_cut_call_goes_away_in_the_middle(cut_after: int):
    async def respond(seen: Seen, writer: asyncio.StreamWriter):
        await stream_tokens(seen, writer, delay=0.002)

    [outcome], _ = ask(respond, Call(prompt="x", max_tokens=1000, cut_after=cut_after))
    assert outcome.cut
    assert outcome.failure is None
    assert cut_after <= len(outcome.piece_times) <= cut_after + 2


def test_an_answer_that_ends_with_the_connection_is_whole():
    body = sse(text_chunk("a", "stop")) + sse(b"[DONE]")
    [outcome], _ = ask(raw(OK + b"Content-Type: text/event-stream\r\n\r\n" + body))
    assert (outcome.failure, outcome.text) == (None, "a")


STREAM = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"", FailureKind.DISCONNECT, "before the answer's end"),
        (b"SMTP ready\r\n\r\n", FailureKind.PROTOCOL, "not HTTP"),
        (STREAM + chunked(sse(text_chunk("a"))), FailureKind.DISCONNECT, "before"),
        (STREAM + chunked(sse(text_chunk("a"))) + b"0\r\n\r\n", FailureKind.DISCONNECT, "DONE"),
        (STREAM + chunked(sse(b"{not json")), FailureKind.PROTOCOL, "not json"),
        (
            STREAM + chunked(sse({"error": {"message": "engine lost"}})),
            FailureKind.STREAM_ERROR,
            "engine lost",
        ),
        (
            b'HTTP/1.1 429 Slow\r\nContent-Length: 30\r\n\r\n{"error":{"message": "later"}}',
            FailureKind.STATUS,
            "later",
        ),
    ],
)
def test_what_goes_wrong_is_named(answer: bytes, kind: FailureKind, words: str):
    [outcome], _ = ask(raw(answer))
    assert outcome.failure is not None
    assert outcome.failure.kind is kind
    assert words in outcome.failure.message


def test_a_server_that_says_nothing_runs_into_the_timeout():
    async def respond(_seen: Seen, writer: asyncio.StreamWriter):
        await asyncio.sleep(0.2)

    [outcome], _ = ask(respond, request_timeout=0.05)
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.TIMEOUT


def test_nobody_there_is_a_connect_failure():
    async def scenario() -> Outcome:
        target = Target(base_url="http://127.0.0.1:1")
        return await Client(target=target, model="m", clock=MonotonicClock()).generate(CALL)

    outcome = asyncio.run(scenario())
    assert outcome.failure is not None
    assert outcome.failure.kind is FailureKind.CONNECT


def test_models_are_listed_and_errors_raised():
    async def scenario() -> tuple[str, ...]:
        async with FakeServer(stream_tokens) as server:
            target = Target(base_url=server.url + "/v1")
            client = Client(target=target, model="", clock=MonotonicClock())
            with pytest.raises(ExchangeFailed):
                await client.get("/closed")
            return await client.list_models()

    assert asyncio.run(scenario()) == ("tiny",)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://a:8000", Origin(host="a", port=8000, root="/v1", tls=False)),
        ("http://a:8000/v1/", Origin(host="a", port=8000, root="/v1", tls=False)),
        ("https://a/x", Origin(host="a", port=443, root="/x/v1", tls=True)),
        ("http://[::1]:8", Origin(host="::1", port=8, root="/v1", tls=False)),
    ],
)
def test_base_urls(url: str, origin: Origin):
    assert parse_base_url(url) == origin


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://", "http://a:99999"])
def test_bad_base_urls(url: str):
    with pytest.raises(ValueError, match=r"."):
        parse_base_url(url)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "a  b"}}, "a b"),
        ({"error": "x"}, "x"),
        ({"detail": "y"}, "y"),
        ([1], "[1]"),
    ],
)
def test_error_bodies_of_many_shapes(body: object, text: str):
    assert describe_error(json.dumps(body).encode()) == text
