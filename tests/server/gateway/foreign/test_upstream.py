"""Our HTTP client against servers that answer in every way a replica may, byte by byte."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from headrace.errors import ProtocolError
from headrace.server.gateway.foreign.address import parse_replica
from headrace.server.gateway.foreign.config import ForeignConfig
from headrace.server.gateway.foreign.upstream import Call, Upstream
from headrace.testing.async_test import async_test

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from headrace.server.gateway.foreign.reading import ResponseHead

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
REQUEST = (b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n", b"{}")
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
CHUNKS = b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n"


class StillClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


@dataclass
class Kept:
    """A receiver that keeps what it gets. ``over`` is set at the end."""

    status: int = 0
    content: bytes = b""
    ended: bool = False
    failure: str = ""
    refused: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def head(self, head: ResponseHead) -> None:
        self.status = head.status

    def body(self, data: bytes) -> None:
        assert not self.over.is_set()
        self.content += data
        self.begun.set()

    def end(self) -> None:
        assert not self.over.is_set()
        self.ended = True
        self.over.set()

    def failed(self, reason: str, *, refused: bool = False) -> None:
        assert not self.over.is_set()
        self.failure, self.refused = reason, refused
        self.over.set()


@dataclass
class Rig:
    """An upstream and the server behind it."""

    upstream: Upstream
    clock: StillClock
    requests: list[bytes]

    def send(self, *, first_byte_limit: float | None = None) -> tuple[Kept, Call]:
        kept = Kept()
        call = Call(REQUEST, kept, first_byte_limit=first_byte_limit)
        self.upstream.send(call)
        return kept, call

    async def ask(self) -> Kept:
        kept, _ = self.send()
        await kept.over.wait()
        return kept


@asynccontextmanager
async def rig(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]],
    **settings: float,
) -> AsyncIterator[Rig]:
    """``answer`` serves one connection; each request's bytes are in ``requests``."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clock = StillClock()
    config = ForeignConfig(sweep_period=0.01, **settings)  # type: ignore[arg-type]
    upstream = Upstream(parse_replica(f"http://127.0.0.1:{port}"), config, clock)
    try:
        yield Rig(upstream, clock, requests)
    finally:
        upstream.close()
        server.close()
        await asyncio.sleep(0)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"{}")


def always(data: bytes, *, close: bool = False) -> Callable[..., Coroutine[None, None, None]]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(data)
            if close:
                return

    return answer


@pytest.mark.parametrize(
    "data",
    [
        OK + b"content-length: 11\r\n\r\nhello world",
        CHUNKED + CHUNKS,
        b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + CHUNKS,
        CHUNKED + CHUNKS.replace(b"5\r\n", b"5;a=b\r\n").replace(b"0\r\n", b"0\r\nx: trailer\r\n"),
    ],
    ids=["length", "chunked", "interim", "extensions"],
)
@async_test
async def test_one_connection_serves_answers_of_every_framing(data: bytes) -> None:
    async with rig(always(data)) as own:
        for _ in range(3):
            kept = await own.ask()
            assert (kept.status, kept.content, kept.ended) == (200, b"hello world", True)
        assert own.upstream.num_connects == 1


@async_test
async def test_an_answer_without_length_ends_with_its_connection() -> None:
    async with rig(always(OK + b"\r\nhello world", close=True)) as own:
        kept = await own.ask()
        assert (kept.content, kept.ended) == (b"hello world", True)
        assert (await own.ask()).ended
        assert own.upstream.num_connects == 2


@async_test
async def test_a_status_without_body_is_an_answer() -> None:
    async with rig(always(b"HTTP/1.1 204 No Content\r\n\r\n")) as own:
        assert (await own.ask()).status == 204


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        CHUNKED + b"5\r\nhello\r\nzz\r\nworld\r\n",
        CHUNKED + b"5\r\nhelloworld\r\n0\r\n\r\n",
        OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: gzip\r\n\r\nhello",
        OK + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
        OK + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        CHUNKED + b"5;" + b"y" * 900_000 + b"\r\nhello\r\n",
    ],
    ids=[
        "ssh",
        "chunk size",
        "chunk length",
        "two lengths",
        "length and chunks",
        "coding",
        "compressed",
        "upgrade",
        "interim",
        "head",
        "extension",
    ],
)
@async_test
async def test_what_is_no_http_fails_and_is_not_used_again(data: bytes) -> None:
    async with rig(always(data)) as own:
        kept = await own.ask()
        assert kept.failure
        assert not kept.ended
        assert (await own.ask()).failure
        assert own.upstream.num_connects == 2


@async_test
async def test_bytes_behind_an_answer_close_the_connection() -> None:
    data = OK + b"content-length: 2\r\n\r\nok"
    async with rig(always(data + data)) as own:
        for number in (1, 2):
            kept = await own.ask()
            assert kept.content == b"ok" or kept.failure
            await asyncio.sleep(0.02)
            assert own.upstream.num_connects == number


@async_test
async def test_a_kept_connection_that_died_is_replaced_unseen() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + b"content-length: 2\r\n\r\nok")
        await read_request(reader)  # the second on this connection gets no answer

    async with rig(once) as own:
        assert (await own.ask()).content == b"ok"
        assert (await own.ask()).content == b"ok"
        assert own.upstream.num_connects == 2


@async_test
async def test_a_fresh_connection_that_dies_fails_once() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async with rig(never) as own:
        kept = await own.ask()
        assert "closed the connection" in kept.failure
        assert not kept.refused
        assert own.upstream.num_connects == 1


@async_test
async def test_an_answer_that_has_begun_is_not_asked_for_again() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + b"content-length: 2\r\n\r\nok")
        await read_request(reader)
        writer.write(CHUNKED + b"5\r\nhello\r\n")
        await writer.drain()

    async with rig(half) as own:
        await own.ask()
        kept = await own.ask()
        assert (kept.content, kept.ended) == (b"hello", False)
        assert kept.failure
        assert own.upstream.num_connects == 1


@async_test
async def test_nobody_listening_is_told_at_once() -> None:
    async with rig(always(b"")) as own:
        gone = Upstream(parse_replica("http://127.0.0.1:9"), own.upstream.config, own.clock)
        kept = Kept()
        gone.send(Call(REQUEST, kept, first_byte_limit=None))
        await kept.over.wait()
        gone.close()
        assert kept.refused
        assert "cannot connect" in kept.failure


@async_test
async def test_silence_before_the_first_byte_has_its_own_limit() -> None:
    async with rig(always(CHUNKED)) as own:
        kept, _ = own.send(first_byte_limit=30.0)
        patient, _ = own.send(first_byte_limit=None)
        await asyncio.sleep(0.05)
        own.clock.time += 29
        await asyncio.sleep(0.05)
        assert not kept.over.is_set()
        own.clock.time += 2
        await kept.over.wait()
        assert "no answer for 3" in kept.failure
        assert not patient.over.is_set()


@async_test
async def test_silence_amid_an_answer_ends_it() -> None:
    async with rig(always(CHUNKED + b"5\r\nhello\r\n")) as own:
        kept, _ = own.send()
        await kept.begun.wait()
        own.clock.time += 11
        await kept.over.wait()
        assert "nothing more for 11.0 s" in kept.failure


@async_test
async def test_a_call_nobody_wants_closes_its_connection() -> None:
    closed = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED + b"5\r\nhello\r\n")
        with suppress(ConnectionError):
            await reader.read()
        closed.set()

    async with rig(endless) as own:
        kept, call = own.send()
        await kept.begun.wait()
        call.cancel()
        await closed.wait()
        assert not kept.over.is_set()


@async_test
async def test_unused_connections_are_closed_after_a_while_and_bounded() -> None:
    async with rig(always(OK + b"content-length: 2\r\n\r\nok"), max_kept=2) as own:
        await asyncio.gather(*(own.ask() for _ in range(5)))
        assert own.upstream.num_connects == 5
        await asyncio.gather(*(own.ask() for _ in range(2)))
        assert own.upstream.num_connects == 5
        own.clock.time += 10
        await asyncio.sleep(0.05)
        await own.ask()
        assert own.upstream.num_connects == 6


@async_test
async def test_a_receiver_may_find_the_answer_wrong() -> None:
    class Picky(Kept):
        def body(self, data: bytes) -> None:
            raise ProtocolError("not to my taste")

    async with rig(always(CHUNKED + CHUNKS)) as own:
        kept = Picky()
        own.upstream.send(Call(REQUEST, kept, first_byte_limit=None))
        await kept.over.wait()
        assert kept.failure == "not to my taste"
