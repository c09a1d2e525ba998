"""The data plane over real sockets: what is no proper request, what takes too long or too much."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
from gateway_serving import CHAT, Served, on_both_loops, serving

from headrace.server.gateway.config import GatewayConfig
from headrace.server.gateway.http.limits import HttpLimits
from headrace.testing.hostile import hostile_requests
from headrace.types import FinishReason

if TYPE_CHECKING:
    from headrace.model.text import TextModel

GET = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt":"hi"}'

REFUSED = hostile_requests(host="a", get="/live", post="/tokenize")


@pytest.mark.parametrize("name", REFUSED)
@on_both_loops
async def test_what_is_no_proper_request_is_answered_with_an_error_and_closed(
    text: TextModel, name: str
) -> None:
    data, status = REFUSED[name]
    async with serving(text) as served:
        client = await served.connect()
        client.send(data)
        answer = await client.answer("POST")
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert answer.error["type"] == "invalid_request_error"
        client.writer.write_eof()
        assert await client.closed() == b""


@on_both_loops
async def test_nothing_behind_a_refused_request_is_served(text: TextModel) -> None:
    async with serving(text) as served:
        data = POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET
        client = await served.connect()
        client.send(data)
        client.writer.write_eof()
        assert (await client.closed()).count(b"HTTP/1.1 ") == 1


@on_both_loops
async def test_requests_before_a_refused_one_are_served(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        client.send(GET + b"nonsense\r\n\r\n")
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 400


def sizes() -> GatewayConfig:
    return GatewayConfig(http=HttpLimits(max_body_bytes=100_000))


@on_both_loops
async def test_a_chunked_body_is_cut_off_at_the_limit(text: TextModel) -> None:
    async with serving(text, sizes()) as served:
        client = await served.connect()
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        answer = await client.answer("POST")
        assert (answer.status, answer.error["code"]) == (413, "payload_too_large")


@on_both_loops
async def test_a_client_that_sends_a_large_body_sees_the_refusal(text: TextModel) -> None:
    """The rest of the body is read and dropped, or the answer would be lost in a reset."""
    async with serving(text, sizes()) as served:
        client = await served.connect()
        client.send(POST + b"Content-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
        await client.writer.drain()
        assert (await client.answer("POST")).status == 413


@on_both_loops
async def test_a_body_of_exactly_the_limit_is_read(text: TextModel) -> None:
    async with serving(text, sizes()) as served:
        body = b'{"prompt":"hi"' + b" " * (100_000 - 15) + b"}"
        assert (await served.request("POST", "/tokenize", body)).status == 200


@on_both_loops
async def test_a_request_may_come_byte_by_byte(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        for byte in POST + b"Content-Length: 15\r\n\r\n" + BODY:
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer("POST")).json["count"] == 2


@on_both_loops
async def test_a_chunked_body_is_put_together(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        client.send(
            POST
            + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\n"
            + BODY[:5]
            + b"\r\na\r\n"
            + BODY[5:]
            + b"\r\n0\r\nTrailer: x\r\n\r\n"
        )
        assert (await client.answer("POST")).json["count"] == 2


@on_both_loops
async def test_pipelined_requests_are_answered_in_order(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        models = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
        client.send((GET + models) * 5 + GET[:10])
        for _ in range(5):
            assert (await client.answer()).body == b'{"ok":true}'
            assert (await client.answer()).json["object"] == "list"
        client.send(GET[10:])
        assert (await client.answer()).status == 200


@on_both_loops
async def test_requests_behind_a_stream_wait_for_its_end(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        client.ask("POST", CHAT, {"messages": [{"role": "user", "content": "a"}], "stream": True})
        request = await served.replica.next_request()
        client.send(GET + GET)
        await asyncio.sleep(0)
        served.replica.say(request, served.encode("x"))
        served.replica.say(request, [served.text.tokenizer.eos_id], finish=FinishReason.STOP)
        assert len((await client.answer("POST")).events) == 3
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 200


@on_both_loops
async def test_more_than_is_kept_behind_a_stream_is_read_after_it(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        client.ask("POST", CHAT, {"messages": [{"role": "user", "content": "a"}], "stream": True})
        request = await served.replica.next_request()
        for _ in range(20):
            client.ask("POST", "/tokenize", {"prompt": "hi", "padding": " " * 30_000})
        (connection,) = served.gateway.listener.crowd
        await served.until(lambda: len(connection._backlog) > 64 * 1024)
        assert len(connection._backlog) < 600_000
        served.replica.say(request, [], finish=FinishReason.STOP)
        assert len((await client.answer("POST")).events) == 2
        for _ in range(20):
            assert (await client.answer("POST")).json["count"] == 2


@on_both_loops
async def test_a_flood_of_pipelined_requests_is_cut_off(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        client.send(GET * 2000)
        answered = (await client.closed()).count(b"HTTP/1.1 200")
        assert answered >= 32


@on_both_loops
async def test_expect_100_continue_is_answered_before_the_body(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        client.send(POST + b"Expect: 100-continue\r\nContent-Length: 15\r\n\r\n")
        assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(BODY)
        assert (await client.answer("POST")).status == 200


@on_both_loops
async def test_expect_100_continue_for_a_body_that_is_too_large_is_refused(
    text: TextModel,
) -> None:
    async with serving(text) as served:
        client = await served.connect()
        client.send(POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
        assert (await client.answer("POST")).status == 413


@on_both_loops
async def test_http_1_0_gets_a_body_up_to_the_close(text: TextModel) -> None:
    async with serving(text) as served:
        answer = await served.raw(b"GET /live HTTP/1.0\r\n\r\n")
        assert answer.endswith(b'connection: close\r\ncontent-length: 11\r\n\r\n{"ok":true}')
        body = b'{"stream":true,"messages":[{"role":"user","content":"a"}]}'
        client = await served.connect()
        client.send(
            b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        await served.answer_with("hi")
        answer = await client.closed()
        assert b"chunked" not in answer
        assert answer.endswith(b"data: [DONE]\n\n")


@on_both_loops
async def test_connection_close_is_obeyed(text: TextModel) -> None:
    async with serving(text) as served:
        answer = await served.raw(b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert answer.endswith(b'{"ok":true}')


@on_both_loops
async def test_an_upgrade_is_ignored_and_the_connection_closed(text: TextModel) -> None:
    async with serving(text) as served:
        answer = await served.raw(
            b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 200")


@on_both_loops
async def test_head_has_the_length_and_no_body(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        answer = await client.request("HEAD", "/live")
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, "11", b"")
        assert (await client.request("GET", "/live")).body == b'{"ok":true}'


@on_both_loops
async def test_options_names_the_methods(text: TextModel) -> None:
    async with serving(text) as served:
        answer = await served.request("OPTIONS", CHAT)
        assert (answer.status, answer.headers["allow"]) == (200, "POST, OPTIONS")


@on_both_loops
async def test_no_answer_names_the_server_or_allows_other_origins(text: TextModel) -> None:
    async with serving(text) as served:
        for answer in (
            await served.request("GET", "/live", origin="http://evil"),
            await served.request("OPTIONS", CHAT, origin="http://evil"),
            await served.request("GET", "/nothing"),
        ):
            assert "server" not in answer.headers
            assert not [name for name in answer.headers if name.startswith("access-control")]


@on_both_loops
async def test_accepted_sockets_send_without_delay(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        await client.request("GET", "/live")
        (connection,) = served.gateway.listener.crowd
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


async def closes_after(served: Served, data: bytes, seconds: float, *, answers: int = 0) -> None:
    """The sweep closes the connection after so many seconds, and not before."""
    client = await served.connect()
    client.send(data)
    for _ in range(answers):
        await client.answer()
    await asyncio.sleep(0.02)  # for the bytes to arrive: nothing visible tells of it
    served.clock.advance(seconds - 0.5)
    served.gateway.listener.sweep()
    assert served.gateway.listener.num_connections == 1
    served.clock.advance(0.6)
    served.gateway.listener.sweep()
    await client.closed()
    await served.until(lambda: served.gateway.listener.num_connections == 0)


@on_both_loops
async def test_a_connection_without_a_byte_is_given_up(text: TextModel) -> None:
    async with serving(text) as served:
        await closes_after(served, b"", 10.0)


@on_both_loops
async def test_a_head_that_does_not_end_is_given_up(text: TextModel) -> None:
    async with serving(text) as served:
        await closes_after(served, GET[:-2], 10.0)


@on_both_loops
async def test_a_body_that_does_not_end_is_given_up(text: TextModel) -> None:
    limits = GatewayConfig(http=HttpLimits(min_body_rate=0.0))
    async with serving(text, limits) as served:
        await closes_after(served, POST + b"Content-Length: 15\r\n\r\n" + BODY[:5], 30.0)


@on_both_loops
async def test_a_body_that_comes_too_slowly_is_given_up(text: TextModel) -> None:
    async with serving(text) as served:
        head = POST + b"Content-Length: 100000\r\n\r\n"
        await closes_after(served, head + b" " * 7168, 7.0)


@on_both_loops
async def test_an_idle_connection_is_given_up(text: TextModel) -> None:
    async with serving(text) as served:
        await closes_after(served, GET, 60.0, answers=1)


@on_both_loops
async def test_a_second_head_that_does_not_end_is_given_up(text: TextModel) -> None:
    async with serving(text) as served:
        await closes_after(served, GET + GET[:9], 10.0, answers=1)


@on_both_loops
async def test_a_refused_client_that_does_not_close_is_cut_off(text: TextModel) -> None:
    async with serving(text) as served:
        await closes_after(served, b"nonsense\r\n\r\n", 2.0, answers=1)


@on_both_loops
async def test_a_byte_now_and_then_does_not_extend_the_head(text: TextModel) -> None:
    async with serving(text) as served:
        client = await served.connect()
        for byte in GET[:11]:
            client.send(bytes([byte]))
            await asyncio.sleep(0.002)
            served.clock.advance(1.0)
            served.gateway.listener.sweep()
        await client.closed()


@on_both_loops
async def test_good_clients_are_not_disturbed(text: TextModel) -> None:
    async with serving(text) as served:
        slow = await served.connect()
        slow.send(GET[:9])
        good = await served.connect()
        for _ in range(20):
            assert (await good.request("GET", "/live")).status == 200
            served.clock.advance(1.0)
            served.gateway.listener.sweep()
        await slow.closed()
        assert (await good.request("GET", "/live")).status == 200


@on_both_loops
async def test_the_sweep_runs_by_itself(text: TextModel) -> None:
    limits = HttpLimits(header_timeout=0.05, sweep_period=0.01)
    async with serving(text, GatewayConfig(http=limits)) as served:
        client = await served.connect()
        assert await client.closed() == b""


MODELS = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"


@on_both_loops
async def test_connections_over_the_cap_are_refused_and_the_others_served(text: TextModel) -> None:
    config = GatewayConfig(http=HttpLimits(max_connections=3))
    async with serving(text, config) as served:
        clients = [await served.connect() for _ in range(3)]
        await clients[2].request("GET", "/live")
        refused = await served.connect()
        refused.send(MODELS)
        answer = await refused.answer()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await clients[0].request("GET", "/v1/models")).status == 200
        refused.close()
        clients[1].close()
        await served.until(lambda: served.gateway.listener.num_connections == 2)
        assert (await served.request("GET", "/v1/models")).status == 200


@on_both_loops
async def test_a_few_over_the_cap_may_ask_for_health_once_each(text: TextModel) -> None:
    config = GatewayConfig(http=HttpLimits(max_connections=1, reserved_connections=2))
    async with serving(text, config) as served:
        await (await served.connect()).request("GET", "/live")
        for path in ("/live", "/ready", "/health"):
            probe = await served.connect()
            answer = await probe.request("GET", path)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await probe.closed() == b""
        await served.until(lambda: served.gateway.listener.num_connections == 1)
        probe = await served.connect()
        probe.send(GET + MODELS)  # the second is not even read
        assert (await probe.closed()).count(b"HTTP/1.1 ") == 1


@on_both_loops
async def test_beyond_them_a_few_are_told_and_a_flood_is_cut(text: TextModel) -> None:
    config = GatewayConfig(http=HttpLimits(max_connections=1, reserved_connections=2))
    async with serving(text, config) as served:
        first = await served.connect()
        await first.request("GET", "/live")
        waiting = [await served.connect() for _ in range(2)]
        told = [await served.connect() for _ in range(2)]
        for client in told:
            assert (await client.answer()).status == 503
        for _ in range(20):
            assert await (await served.connect()).closed() == b""
        assert served.gateway.listener.num_connections == 5
        served.clock.advance(2.5)
        served.gateway.listener.sweep()
        for client in (*waiting, *told):
            assert await client.closed() == b""
        assert (await first.request("GET", "/live")).status == 200


@on_both_loops
async def test_connections_of_one_address_are_capped(text: TextModel) -> None:
    config = GatewayConfig(http=HttpLimits(max_connections_per_ip=2, loopback_is_exempt=False))
    async with serving(text, config) as served:
        for _ in range(2):
            assert (await (await served.connect()).request("GET", "/live")).status == 200
        assert (await (await served.connect()).answer()).status == 503


@on_both_loops
async def test_local_clients_are_exempt_from_the_cap_per_address(text: TextModel) -> None:
    config = GatewayConfig(http=HttpLimits(max_connections_per_ip=1))
    async with serving(text, config) as served:
        for _ in range(3):
            assert (await (await served.connect()).request("GET", "/live")).status == 200


@on_both_loops
async def test_a_thousand_clients_that_come_and_go_leave_nothing(text: TextModel) -> None:
    async with serving(text) as served:
        for _ in range(20):
            clients = [await served.connect() for _ in range(50)]
            for index, client in enumerate(clients):
                if index % 3 == 0:
                    client.send(GET[:20])
                elif index % 3 == 1:
                    client.ask("POST", CHAT, {"messages": [{"role": "user", "content": "a"}]})
                client.reset() if index % 2 else client.close()
            served.clients.clear()
        await served.until(lambda: served.gateway.listener.num_connections == 0)


@on_both_loops
async def test_after_a_hand_over_each_connection_has_one_request_more(text: TextModel) -> None:
    async with serving(text) as served:
        idle, busy = await served.connect(), await served.connect()
        await idle.request("GET", "/live")
        busy.ask("POST", CHAT, {"messages": [{"role": "user", "content": "a"}]})
        request = await served.replica.next_request()
        served.gateway.listener.hand_over()
        assert served.gateway.listener.num_connections == 2  # nobody is cut off
        answer = await idle.request("GET", "/live")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        served.replica.say(request, [5], finish=FinishReason.STOP)
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await served.until(lambda: served.gateway.listener.num_connections == 0)
