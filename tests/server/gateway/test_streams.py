"""Streams that are slow, cut, or fail; clients that leave; servers that end."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
from gateway_serving import CHAT, Client, Served, on_both_loops, serving

from headrace.monitoring import table
from headrace.server.gateway.config import GatewayConfig
from headrace.server.gateway.http.limits import HttpLimits
from headrace.testing.async_test import async_test
from headrace.types import FinishReason

if TYPE_CHECKING:
    from headrace.model.text import TextModel
    from headrace.types import Request

HI = {"messages": [{"role": "user", "content": "hi"}]}
NO_MIGRATION = GatewayConfig(max_migrations=0)


async def begin(served: Served, *, stream: bool = True, **fields: object) -> tuple[Client, Request]:
    """Send a request and wait until the replica has it."""
    client = await served.connect()
    client.ask("POST", CHAT, HI | {"stream": stream} | fields)
    return client, await served.replica.next_request()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("tokens", [0, 1], ids=["prefill", "decode"])
@pytest.mark.parametrize("way", ["close", "reset", "half-close"])
@on_both_loops
async def test_a_client_that_leaves_is_noticed_at_once(
    text: TextModel, stream: bool, tokens: int, way: str
) -> None:
    async with serving(text) as served:
        client, request = await begin(served, stream=stream)
        for _ in range(tokens):
            served.replica.say(request, served.encode("a"))
        await asyncio.sleep(0)
        match way:
            case "close":
                client.close()
            case "reset":
                client.reset()
            case _:
                client.writer.write_eof()
        await served.until(lambda: served.replica.aborted == [request.id])
        served.replica.say(request, served.encode("late"))
        await served.until(lambda: served.registry.value(table.GENERATIONS, "abort") == 1)
        await served.until(
            lambda: (
                served.registry.value(table.HTTP_REQUESTS, CHAT, "499") == 1
                or (stream and tokens == 1)
            )
        )


@on_both_loops
async def test_a_client_that_leaves_the_queue_never_reaches_a_replica(text: TextModel) -> None:
    async with serving(text, connect=False) as served:
        client = await served.connect()
        client.ask("POST", CHAT, HI)
        await served.until(lambda: served.registry.value(table.GENERATIONS_RUNNING) == 1)
        client.reset()
        await served.until(lambda: served.registry.value(table.GENERATIONS_RUNNING) == 0)
        served.replica.connect()
        await asyncio.sleep(0)
        assert served.replica.submitted == []


@on_both_loops
async def test_a_client_that_leaves_while_its_prompt_is_tokenised_is_forgotten(
    text: TextModel,
) -> None:
    async with serving(text, GatewayConfig(inline_bytes=0)) as served:
        for _ in range(5):
            client = await served.connect()
            client.ask("POST", CHAT, {"messages": [{"role": "user", "content": "the " * 200}]})
            await asyncio.sleep(0)
            client.reset()
        await served.until(lambda: served.gateway.listener.num_connections == 0)
        served.replica.submitted.clear()
        assert (await served.request("GET", "/live")).status == 200


@on_both_loops
async def test_one_client_that_leaves_does_not_disturb_the_others(text: TextModel) -> None:
    async with serving(text) as served:
        stays, first = await begin(served)
        leaves, second = await begin(served)
        leaves.reset()
        await served.until(lambda: served.replica.aborted == [second.id])
        served.replica.say(first, served.encode("a"), finish=FinishReason.LENGTH)
        assert (await stays.answer("POST")).status == 200


@on_both_loops
async def test_a_client_that_does_not_read_is_given_up_and_the_others_served(
    text: TextModel,
) -> None:
    async with serving(text) as served:
        client, request = await begin(served)
        client.writer.transport.pause_reading()
        raw = client.writer.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        other, second = await begin(served)
        (stalled, _) = served.gateway.listener.crowd
        long = served.encode("\u4e2d" * 2000)
        while stalled._stalled_since is None:
            served.replica.say(request, long)
            await asyncio.sleep(0)
        served.clock.advance(29)
        served.gateway.listener.sweep()
        assert served.replica.aborted == []
        served.clock.advance(2)
        served.gateway.listener.sweep()
        await served.until(lambda: served.replica.aborted == [request.id])
        served.replica.say(second, served.encode("a"), finish=FinishReason.LENGTH)
        assert (await other.answer("POST")).status == 200


@on_both_loops
async def test_unsent_bytes_are_bounded(text: TextModel) -> None:
    limits = HttpLimits(max_send_buffer_bytes=200_000)
    async with serving(text, GatewayConfig(http=limits)) as served:
        client, request = await begin(served)
        client.writer.transport.pause_reading()
        long = served.encode("x" * 2000)
        for _ in range(20_000):
            served.replica.say(request, long)
            await asyncio.sleep(0)
            if served.replica.aborted:
                break
        assert served.replica.aborted == [request.id]


@on_both_loops
async def test_a_stall_that_ends_is_forgiven(text: TextModel) -> None:
    async with serving(text) as served:
        client, request = await begin(served)
        client.writer.transport.pause_reading()
        (connection,) = served.gateway.listener.crowd
        said = 0
        long = served.encode("\u4e2d" * 2000)
        while connection._stalled_since is None:
            served.replica.say(request, long)
            said += 2000
            await asyncio.sleep(0)
        served.clock.advance(29)
        served.gateway.listener.sweep()
        client.writer.transport.resume_reading()
        talk = asyncio.create_task(client.answer("POST"))
        await served.until(lambda: connection._stalled_since is None)
        served.clock.advance(29)
        served.gateway.listener.sweep()
        served.replica.say(request, [], finish=FinishReason.LENGTH)
        events = (await talk).events
        assert sum(len(e["choices"][0]["delta"].get("content", "")) for e in events) == said


@on_both_loops
async def test_a_silent_stream_is_pinged(text: TextModel) -> None:
    async with serving(text) as served:
        client, request = await begin(served)
        served.gateway.listener.sweep()
        served.clock.advance(14)
        served.gateway.listener.sweep()
        served.clock.advance(2)
        served.gateway.listener.sweep()
        served.replica.say(request, served.encode("a"))
        await asyncio.sleep(0)
        served.gateway.listener.sweep()
        served.clock.advance(16)
        served.gateway.listener.sweep()
        served.replica.say(request, [], finish=FinishReason.STOP)
        answer = await client.answer("POST")
        assert answer.body.startswith(b": ping\n\ndata: ")
        assert answer.body.count(b": ping\n\n") == 2
        assert len(answer.events) == 3


@on_both_loops
async def test_a_stream_that_speaks_is_not_pinged(text: TextModel) -> None:
    async with serving(text) as served:
        client, request = await begin(served)
        for _ in range(3):
            served.gateway.listener.sweep()
            served.clock.advance(14)
            served.replica.say(request, served.encode("a"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        served.gateway.listener.sweep()
        served.replica.say(request, [], finish=FinishReason.STOP)
        assert b": ping" not in (await client.answer("POST")).body


@on_both_loops
async def test_a_stalled_client_that_half_closes_is_noticed_at_once(text: TextModel) -> None:
    async with serving(text) as served:
        client, request = await begin(served)
        client.writer.transport.pause_reading()
        (connection,) = served.gateway.listener.crowd
        long = served.encode("\u4e2d" * 2000)
        while connection._stalled_since is None:
            served.replica.say(request, long)
            await asyncio.sleep(0)
        client.writer.write_eof()
        await served.until(lambda: served.replica.aborted == [request.id])
        client.reset()


@on_both_loops
async def test_an_answer_that_is_no_stream_is_not_pinged(text: TextModel) -> None:
    async with serving(text) as served:
        client, request = await begin(served, stream=False)
        served.gateway.listener.sweep()
        served.clock.advance(16)
        served.gateway.listener.sweep()
        served.replica.say(request, served.encode("a"), finish=FinishReason.LENGTH)
        assert (await client.answer("POST")).json["choices"][0]["message"]["content"] == "a"


FAILURES = [
    ("engine_fault", 500),
    ("worker_lost", 502),
    ("overloaded", 503),
    ("invalid_request", 400),
]


@pytest.mark.parametrize(("code", "status"), FAILURES)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@async_test
async def test_an_error_before_the_first_token_has_its_status(
    text: TextModel, code: str, status: int, stream: bool
) -> None:
    async with serving(text, NO_MIGRATION) as served:
        client, request = await begin(served, stream=stream)
        if code == "worker_lost":
            served.replica.disconnect()
        else:
            served.replica.reject(request, code, "the reason")
        answer = await client.answer("POST")
        assert (answer.status, answer.error["code"]) == (status, code)
        assert ("retry-after" in answer.headers) == (status in (502, 503))
        assert (await client.request("GET", "/live")).status == 200


@on_both_loops
async def test_an_error_in_a_stream_is_an_event_and_the_connection_goes_on(
    text: TextModel,
) -> None:
    async with serving(text, NO_MIGRATION) as served:
        client, request = await begin(served)
        served.replica.say(request, served.encode("a"))
        await asyncio.sleep(0)
        served.replica.disconnect("killed")
        events = (await client.answer("POST")).events
        assert events[-1]["error"]["code"] == "worker_lost"
        assert "killed" in events[-1]["error"]["message"]
        assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
        assert (await client.request("GET", "/live")).status == 200


@async_test
async def test_an_error_in_an_answer_that_is_no_stream_replaces_it(text: TextModel) -> None:
    async with serving(text) as served:
        client, request = await begin(served, stream=False)
        served.replica.say(request, served.encode("a"))
        served.replica.say(request, [], finish=FinishReason.ERROR, reason="NaN in logits")
        answer = await client.answer("POST")
        assert (answer.status, answer.error["message"]) == (500, "NaN in logits")


@async_test
async def test_one_failed_choice_fails_the_request_and_frees_the_others(text: TextModel) -> None:
    async with serving(text) as served:
        client, first = await begin(served, n=2)
        second = await served.replica.next_request()
        served.replica.say(second, [], finish=FinishReason.ERROR, reason="bad row")
        answer = await client.answer("POST")
        assert (answer.status, answer.error["code"]) == (500, "engine_fault")
        await served.until(lambda: served.replica.aborted == [first.id])


@async_test
async def test_requests_are_refused_when_the_queue_is_full(text: TextModel) -> None:
    async with serving(text, GatewayConfig(max_waiting=2), connect=False) as served:
        waiting = [await served.connect() for _ in range(2)]
        for client in waiting:
            client.ask("POST", CHAT, HI)
        await served.until(lambda: served.registry.value(table.GENERATIONS_RUNNING) == 2)
        answer = await served.request("POST", CHAT, HI)
        assert (answer.status, answer.error["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) >= 1


@async_test
async def test_a_request_that_waits_too_long_is_refused(text: TextModel) -> None:
    async with serving(text, GatewayConfig(max_wait=0.02), connect=False) as served:
        answer = await served.request("POST", CHAT, HI)
        assert (answer.status, answer.error["code"]) == (503, "not_ready")


@on_both_loops
async def test_a_drain_finishes_streams_and_refuses_new_requests(text: TextModel) -> None:
    async with serving(text) as served:
        streaming, request = await begin(served)
        served.replica.say(request, served.encode("a"))
        idle = await served.connect()
        await idle.request("GET", "/live")
        reading = await served.connect()
        reading.send(b"GET /ready HTTP/1.1\r\n")
        await asyncio.sleep(0.01)
        drain = asyncio.create_task(served.gateway.drain(30))
        assert await idle.closed() == b"", "idle connections are closed"
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset
            await (await served.connect()).request("GET", "/live")
        reading.send(b"Host: a\r\n\r\n")
        answer = await reading.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert answer.json["reasons"] == ["draining"]
        served.replica.say(request, [], finish=FinishReason.STOP)
        events = (await streaming.answer("POST")).events
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
        assert await streaming.closed() == b""
        await drain


@on_both_loops
async def test_a_request_that_arrives_during_a_drain_gets_a_503_and_a_close(
    text: TextModel,
) -> None:
    async with serving(text) as served:
        _, request = await begin(served)
        late = await served.connect()
        late.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n")
        await asyncio.sleep(0.01)
        drain = asyncio.create_task(served.gateway.drain(30))
        await asyncio.sleep(0)
        body = b'{"messages":[{"role":"user","content":"a"}]}'
        late.send(
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        answer = await late.answer("POST")
        assert (answer.status, answer.error["code"]) == (503, "not_ready")
        assert answer.headers["connection"] == "close"
        served.replica.say(request, [], finish=FinishReason.STOP)
        await drain


@on_both_loops
async def test_a_drain_that_takes_too_long_ends_streams_with_an_error(text: TextModel) -> None:
    async with serving(text) as served:
        streaming, request = await begin(served)
        whole, _ = await begin(served, stream=False)
        served.replica.say(request, served.encode("a"))
        await asyncio.sleep(0)
        await served.gateway.drain(0.01)
        events = (await streaming.answer("POST")).events
        assert events[-1]["error"]["code"] == "not_ready"
        assert (await whole.answer("POST")).status == 503
        assert len(served.replica.aborted) == 2


@async_test
async def test_what_goes_wrong_with_one_request_is_kept_from_the_others(
    text: TextModel, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(text) as served:
        other, second = await begin(served)
        client, request = await begin(served)
        served.replica.say(request, [10**6])  # there is no such token
        answer = await client.answer("POST")
        assert (answer.status, answer.error["message"]) == (500, "internal error")
        assert "IndexError" in caplog.text
        served.replica.say(second, served.encode("a"), finish=FinishReason.LENGTH)
        assert (await other.answer("POST")).status == 200


@async_test
async def test_a_gateway_whose_router_died_ends_with_its_exception(text: TextModel) -> None:
    def explode(request: Request) -> None:
        raise RuntimeError("a broken link")

    async with serving(text) as served:
        served.replica.submit = explode  # type: ignore[method-assign]
        client = await served.connect()
        client.ask("POST", CHAT, HI)
        with pytest.raises(RuntimeError, match="a broken link"):
            await served.task
        assert await client.closed() == b""
