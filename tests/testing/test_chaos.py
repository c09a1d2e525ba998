"""The fault proxy: passes bytes on unchanged, and does to them exactly what it is told."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from headrace.cli.main import main
from headrace.clock import MonotonicClock
from headrace.errors import UsageError
from headrace.server.address import bind
from headrace.testing.async_test import async_test
from headrace.testing.chaos import (
    NO_FAULTS,
    Endpoint,
    FaultProxy,
    Faults,
    Strike,
    Towards,
    parse_endpoint,
)
from headrace.testing.chaos.endpoint import taken_over
from headrace.testing.chaos.pipe import MAX_PIECES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
MEGABYTE = bytes(range(256)) * 4096


@dataclass
class Rig:
    """A proxy before an upstream that a test speaks for."""

    proxy: FaultProxy
    port: int
    strikes: list[Strike] = field(default_factory=list)
    arrivals: asyncio.Queue[Streams] = field(default_factory=asyncio.Queue)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[Streams, Streams]:
        """The client's side and the upstream's of a new connection."""
        client = await asyncio.open_connection("127.0.0.1", self.port)
        upstream = await self.arrivals.get()
        self.writers += [client[1], upstream[1]]
        return client, upstream


@asynccontextmanager
async def running(faults: Faults = NO_FAULTS, *, seed: int = 0) -> AsyncIterator[Rig]:
    arrivals: asyncio.Queue[Streams] = asyncio.Queue()
    server = await asyncio.start_server(lambda *pair: arrivals.put_nowait(pair), "127.0.0.1", 0)
    strikes: list[Strike] = []
    proxy = FaultProxy(
        upstream=Endpoint("127.0.0.1", server.sockets[0].getsockname()[1]),
        clock=MonotonicClock(),
        faults=faults,
        seed=seed,
        tell=strikes.append,
    )
    listening = bind("127.0.0.1", 0)
    await proxy.start(listening)
    rig = Rig(proxy, listening.getsockname()[1], strikes, arrivals)
    try:
        yield rig
    finally:
        for writer in rig.writers:
            writer.transport.abort()
        server.close()
        await proxy.close()
        assert proxy.num_connections == 0


async def until_reset(reader: asyncio.StreamReader) -> bytes:
    """What comes until a reset, which must come."""
    data = b""
    try:
        while piece := await reader.read(1 << 16):
            data += piece
    except ConnectionResetError:
        return data
    raise AssertionError(f"an orderly end after {len(data)} bytes")


@async_test
async def test_without_faults_bytes_pass_unchanged_both_ways_and_ends_too() -> None:
    async with running() as rig:
        (client_in, client_out), (reader, writer) = await rig.connect()
        sending = asyncio.gather(send_all(client_out, MEGABYTE), send_all(writer, MEGABYTE[::-1]))
        assert await reader.readexactly(1 << 20) == MEGABYTE
        assert await client_in.readexactly(1 << 20) == MEGABYTE[::-1]
        await sending
        client_out.write_eof()
        assert await reader.read() == b""
        writer.write(b"last words")
        writer.close()
        assert await client_in.read() == b"last words"
        assert rig.strikes == []


async def send_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


@async_test
async def test_a_reset_on_one_side_is_one_on_the_other() -> None:
    async with running() as rig:
        (client_in, _), (_, writer) = await rig.connect()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: closing sends a reset
        writer.transport.abort()
        await until_reset(client_in)


@async_test
async def test_a_connection_is_reset_after_so_many_bytes() -> None:
    async with running(Faults(reset_after=1000)) as rig:
        (client_in, _), (reader, writer) = await rig.connect()
        writer.write(b"x" * 999)
        assert await client_in.readexactly(999) == b"x" * 999
        writer.write(b"yz")
        assert (await until_reset(client_in)) in (b"", b"y")
        await until_reset(reader)
        (strike,) = rig.strikes
        assert str(strike).endswith("reset after 1000 bytes to the client")


@async_test
async def test_a_cut_is_an_orderly_end_wherever_it_falls() -> None:
    async with running(Faults(cut_after=5)) as rig:
        (client_in, _), (reader, writer) = await rig.connect()
        writer.write(b"hello world")
        assert await client_in.read() == b"hello"
        assert await reader.read() == b""


@async_test
async def test_what_hangs_is_read_no_more_and_goes_on_where_it_stood() -> None:
    async with running(Faults(hang_after=3)) as rig:
        (client_in, client_out), (reader, writer) = await rig.connect()
        writer.write(b"abc" + MEGABYTE * 16)
        assert await client_in.readexactly(3) == b"abc"
        client_out.write(b"still heard")
        assert await reader.readexactly(11) == b"still heard"
        with pytest.raises(TimeoutError):  # 16 MB are more than all buffers hold: zero window
            await asyncio.wait_for(writer.drain(), 0.05)
        rig.proxy.faults = NO_FAULTS
        assert await client_in.readexactly(16 << 20) == MEGABYTE * 16
        assert [strike.what for strike in rig.strikes] == ["hung"]


@async_test
async def test_a_half_open_client_hears_nothing_of_the_end() -> None:
    async with running(Faults(half_open_after=2)) as rig:
        (client_in, client_out), (reader, writer) = await rig.connect()
        writer.write(b"hi")
        assert await client_in.readexactly(2) == b"hi"
        await until_reset(reader)
        client_out.write(b"anybody there?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client_in.read(), 0.05)


@async_test
async def test_a_refused_connection_never_reaches_the_upstream() -> None:
    async with running(Faults(refuse=True)) as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        await until_reset(reader)
        writer.close()
        assert rig.arrivals.empty()
        assert rig.proxy.tally.endings == {"refused": 1}


@async_test
async def test_bytes_come_late_and_in_order() -> None:
    clock = MonotonicClock()
    async with running(Faults(latency=0.03, jitter=0.02, towards=Towards.BOTH)) as rig:
        (client_in, client_out), (reader, writer) = await rig.connect()
        begun = clock.now()
        client_out.write(b"?")
        assert await reader.readexactly(1) == b"?"
        for digit in b"0123456789":
            writer.write(bytes([digit]))
            await writer.drain()
        assert await client_in.readexactly(10) == b"0123456789"
        assert 0.06 <= clock.now() - begun < 0.5


@async_test
async def test_bandwidth_and_drip_are_kept() -> None:
    clock = MonotonicClock()
    for faults, size in ((Faults(bandwidth=100_000), 10_000), (Faults(drip=200), 20)):
        async with running(faults) as rig:
            (client_in, _), (_, writer) = await rig.connect()
            begun = clock.now()
            writer.write(MEGABYTE[:size])
            assert await client_in.readexactly(size) == MEGABYTE[:size]
            assert 0.09 <= clock.now() - begun < 1.0


@async_test
async def test_a_slow_reader_costs_bounded_memory() -> None:
    async with running(Faults(latency=10.0)) as rig:
        _, (_, writer) = await rig.connect()
        writer.write(MEGABYTE * 16)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.1)
        (line,) = rig.proxy._lines
        assert line is not None
        assert MAX_PIECES * 16384 == 1 << 20


@async_test
async def test_corruption_turns_single_bits_over_the_same_ones_again() -> None:
    heard = []
    for _ in range(2):
        async with running(Faults(corrupt=0.01), seed=3) as rig:
            (client_in, _), (_, writer) = await rig.connect()
            writer.write(b"\0" * 10_000)
            heard.append(await client_in.readexactly(10_000))
    assert heard[0] == heard[1]
    wrong = [byte for byte in heard[0] if byte]
    assert 50 < len(wrong) < 200
    assert all(byte.bit_count() == 1 for byte in wrong)


@async_test
async def test_a_share_of_connections_is_struck_the_same_ones_again() -> None:
    fates = []
    for _ in range(2):
        async with running(Faults(cut_after=1, share=0.3), seed=5) as rig:
            for _ in range(40):
                (client_in, client_out), (_, writer) = await rig.connect()
                writer.write(b"hello")
                writer.write_eof()
                client_out.write_eof()
                await client_in.read()
            fates.append([strike.connection for strike in rig.strikes])
    assert fates[0] == fates[1]
    assert 5 <= len(fates[0]) <= 20


@async_test
async def test_an_upstream_that_is_not_there_is_told() -> None:
    async with running() as rig:
        rig.proxy.upstream = Endpoint("127.0.0.1", 9)
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        await until_reset(reader)
        writer.close()
        assert "cannot connect to 127.0.0.1:9" in rig.strikes[0].what


@async_test
async def test_all_connections_can_be_reset_at_once() -> None:
    async with running() as rig:
        pairs = [await rig.connect() for _ in range(3)]
        rig.proxy.reset_all()
        for (client_in, _), (reader, _) in pairs:
            await until_reset(client_in)
            await until_reset(reader)


@async_test
async def test_it_steps_before_a_unix_socket_and_back(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"engine")
        writer.close()

    server = await asyncio.start_unix_server(greet, path)
    with taken_over(path) as (ours, theirs):
        proxy = FaultProxy(upstream=theirs, clock=MonotonicClock(), faults=Faults(cut_after=3))
        await proxy.start(ours)
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.read() == b"eng"
        writer.close()
        await proxy.close()
        with pytest.raises(UsageError, match="another proxy"), taken_over(path):
            pass
    reader, writer = await asyncio.open_unix_connection(path)
    assert await reader.read() == b"engine"
    writer.close()
    server.close()
    assert os.listdir(tmp_path) == ["engine.sock"]


def test_the_command_says_what_it_did_and_ends_at_sigterm() -> None:
    command = (sys.executable, "-P", "-m", "headrace", "chaos", "--listen", ":0")
    with (
        socket.create_server(("127.0.0.1", 0)) as upstream,
        subprocess.Popen(
            (*command, "--upstream", f":{upstream.getsockname()[1]}", "--reset-after", "2B"),
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        port = int(process.stdout.readline().split(" before ")[0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            with upstream.accept()[0] as server:
                server.send(b"hello")
                assert "reset after 2 bytes to the client" in process.stdout.readline()
            with client.makefile("rb") as heard, pytest.raises(ConnectionResetError):
                heard.read()
        process.terminate()
        assert "1 connections, 1 reset; 0 bytes to the upstream, 2" in process.stdout.read()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        (":80", Endpoint("127.0.0.1", 80)),
        ("[::1]:80", Endpoint("::1", 80)),
    ],
)
def test_addresses_are_read(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", ["", "here", "here:", "here:http", "a:99999", "unix:"])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(UsageError):
        parse_endpoint(text)


@pytest.mark.parametrize(
    "flags",
    [
        ["--listen", ":1"],
        ["--listen", ":1", "--upstream", "x"],
        ["--listen", ":1", "--upstream", ":2", "--share", "2"],
        ["--listen", ":1", "--upstream", ":2", "--drip", "0"],
        ["--listen", ":1", "--upstream", ":2", "--towards", "moon"],
        ["--listen", ":1", "--take-over", "/x"],
        ["--take-over", "/nothing/there"],
    ],
)
def test_wrong_use_is_told_in_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chaos", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--latency", "fast"], ["--reset-after", "-1"]])
def test_quantities_have_units(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["chaos", *flags])
    assert end.value.code == 2
    assert "write it like" in capsys.readouterr().err
