"""Clients that record streams, before servers that do as told."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from headrace.testing.streams import Asked, Crowd, get, metric

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

ASKED = Asked(prompt="a", max_tokens=3)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(**fields: object) -> bytes:
    return chunk(b"data: " + json.dumps(fields).encode() + b"\n\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def piece(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"text": text, "finish_reason": finish}])


DONE = chunk(b"data: [DONE]\n\n")
END = b"0\r\n\r\n"


@asynccontextmanager
async def server(*writes: bytes, requests: list[bytes] | None = None) -> AsyncIterator[int]:
    """Answer every connection with these bytes and close it; yield the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if requests is not None:
            requests.append(head)
        for data in writes:
            writer.write(data)
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    running = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with running:
        yield running.sockets[0].getsockname()[1]


def whole(status: str, body: Sequence[object] | dict[str, object], *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "", "")
    return "\r\n".join(lines).encode() + content


async def test_a_stream_is_recorded_piece_by_piece():
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    writes = (STREAM, piece("x"), piece("y", "length"), event(choices=[], usage=usage), DONE, END)
    async with server(*writes) as port:
        heard = await Crowd(port).ask(ASKED)
    assert (heard.text, heard.pieces, heard.finishes) == ("xy", ["x", "y"], ["length"])
    assert heard.usage is not None
    assert heard.usage.completion_tokens == 2
    assert (heard.num_done, heard.num_late, heard.broken) == (1, 0, "")
    assert heard.is_whole
    assert heard.started_at <= heard.times[0] <= heard.times[1] <= (heard.ended_at or 0)


async def test_a_chat_and_a_whole_answer_are_read_by_their_shapes():
    requests: list[bytes] = []
    body = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    async with server(whole("200 OK", body), requests=requests) as port:
        heard = await Crowd(port).ask(Asked(prompt="a", max_tokens=3, chat=True, stream=False))
    assert requests[0].startswith(b"POST /v1/chat/completions ")
    assert (heard.text, heard.is_whole) == ("hello", True)


async def test_a_connection_that_breaks_is_no_success():
    async with server(STREAM, piece("x"), piece("y", "length")) as port:
        heard = await Crowd(port).ask(ASKED)
    assert heard.broken
    assert heard.has_failed
    assert heard.text == "xy"


async def test_what_comes_after_the_end_is_noticed():
    async with server(STREAM, piece("x", "stop"), DONE, piece("y"), DONE, END) as port:
        heard = await Crowd(port).ask(ASKED)
    assert (heard.num_done, heard.num_late) == (2, 2)


async def test_errors_are_kept_with_their_status_and_header():
    error = {"error": {"message": "full", "type": "overloaded_error", "code": "overloaded"}}
    async with server(whole("503 Busy", error, "Retry-After: 7")) as port:
        heard = await Crowd(port).ask(ASKED)
    assert (heard.status, heard.errors[0].code) == (503, "overloaded")
    assert heard.headers["retry-after"] == "7"
    assert heard.has_failed


async def test_nonsense_is_a_broken_protocol():
    async with server(STREAM, chunk(b"data: {nonsense\n\n"), END) as port:
        heard = await Crowd(port).ask(ASKED)
    assert heard.broken.startswith("protocol: ")


async def test_nobody_listening_is_a_failure():
    async with server() as port:
        pass
    heard = await Crowd(port).ask(ASKED)
    assert (heard.status, heard.has_failed) == (0, True)


async def test_a_client_goes_away_after_enough():
    async with server(STREAM, *(piece(str(i)) for i in range(9)), DONE, END) as port:
        heard = await Crowd(port).ask(Asked(prompt="a", max_tokens=9, enough=2))
    assert heard.left
    assert not heard.has_failed
    assert heard.text.startswith("01")


async def test_a_closed_loop_asks_until_told_to_stop():
    stop = asyncio.Event()
    asked = 0

    def next_asked() -> Asked:
        nonlocal asked
        asked += 1
        if asked == 10:
            stop.set()
        return ASKED

    async with server(STREAM, piece("x", "stop"), DONE, END) as port:
        crowd = Crowd(port)
        await crowd.closed_loop(3, next_asked, stop)
    assert len(crowd.heard) == asked
    assert 10 <= asked <= 12
    assert all(heard.is_whole for heard in crowd.heard)


async def test_an_open_loop_asks_at_its_times():
    async with server(STREAM, piece("x", "stop"), DONE, END) as port:
        crowd = Crowd(port)
        await crowd.open_loop([(0.0, ASKED), (0.02, ASKED), (0.04, ASKED)])
    first, *_, last = crowd.heard
    assert len(crowd.heard) == 3
    assert last.started_at - first.started_at >= 0.03


async def test_metrics_are_summed_over_matching_series():
    text = 'a_total{x="1",y="2"} 3\na_total{x="1",y="3"} 4\na_total{x="2"} 5\nab 7\n'
    async with server(whole("200 OK", [1])) as port:
        assert await get(port, "/metrics") == (200, "[1]")
    assert metric(text, "a_total") == 12
    assert metric(text, "a_total", x="1") == 7
    assert metric(text, "ab") == 7
