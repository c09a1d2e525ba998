"""Framing: any split of the stream gives the same payloads; garbage ends a connection, no more."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ProtocolError
from headrace.messages import VERSION, AbortRequest, Hello
from headrace.server.transport.frames import (
    ConnectionLimits,
    FrameConnection,
    FrameReader,
    pack,
)
from headrace.testing.async_test import async_test

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_FRAME = 4096
LIMITS = ConnectionLimits(max_frame_bytes=MAX_FRAME, max_buffer_bytes=1 << 20, stall_seconds=0.05)


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def read(reader: FrameReader, chunks: Sequence[bytes]) -> tuple[list[bytes], bool]:
    """Payloads, and whether the stream broke the protocol."""
    payloads: list[bytes] = []
    for chunk in chunks:
        try:
            payloads.extend(reader.feed(chunk))
        except ProtocolError:
            return payloads, True
    return payloads, False


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=200), max_size=20),
    cuts=st.lists(st.integers(0, 5000), max_size=30),
)
def test_any_split_of_the_stream_gives_the_payloads_that_were_sent(
    payloads: list[bytes], cuts: list[int]
):
    reader = FrameReader(max_frame_bytes=MAX_FRAME)
    stream = b"".join(pack(payload) for payload in payloads)
    assert read(reader, split(stream, cuts)) == (payloads, False)
    assert reader.num_buffered_bytes == 0


@given(
    valid=st.lists(st.binary(min_size=1, max_size=50), max_size=3),
    garbage=st.binary(max_size=400),
    cuts=st.lists(st.integers(0, 1000), max_size=10),
)
def test_garbage_is_refused_at_the_same_place_however_it_arrives(
    valid: list[bytes], garbage: bytes, cuts: list[int]
):
    stream = b"".join(pack(payload) for payload in valid) + garbage
    whole = read(FrameReader(max_frame_bytes=MAX_FRAME), [stream])
    reader = FrameReader(max_frame_bytes=MAX_FRAME)
    assert read(reader, split(stream, cuts)) == whole
    assert whole[0][: len(valid)] == valid
    assert reader.num_buffered_bytes <= MAX_FRAME + 5 + len(stream)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (struct.pack("<IB", MAX_FRAME + 1, VERSION), "1 to 4096 are allowed"),
        (struct.pack("<IB", 0, VERSION), "frame of 0 bytes"),
        (struct.pack("<IB", 1, VERSION + 1), f"this side speaks {VERSION}"),
    ],
)
def test_a_wrong_head_is_refused_before_its_payload_arrives(head: bytes, words: str):
    with pytest.raises(ProtocolError, match=words):
        list(FrameReader(max_frame_bytes=MAX_FRAME).feed(head))


def test_a_long_frame_in_small_pieces_is_read_in_linear_memory():
    reader = FrameReader(max_frame_bytes=1 << 20)
    payload = bytes(1 << 20)
    payloads, _ = read(reader, split(pack(payload), range(0, 1 << 20, 1000)))
    assert payloads == [payload]


class Recorder:
    """A FramePeer that remembers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.payloads: list[bytes] = []
        self.reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def opened(self, connection: FrameConnection) -> None:
        pass

    def received(self, connection: FrameConnection, payload: bytes) -> None:
        self.payloads.append(payload)
        if self.error is not None:
            raise self.error

    def closed(self, connection: FrameConnection, reason: str) -> None:
        self.reason.set_result(reason)


async def connect(
    recorder: Recorder, limits: ConnectionLimits = LIMITS
) -> tuple[FrameConnection, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: FrameConnection(recorder, limits), sock=ours
    )
    return connection, theirs


async def ended(recorder: Recorder) -> str:
    return await asyncio.wait_for(recorder.reason, 5)


@async_test
async def test_a_peer_that_reads_nothing_is_disconnected():
    recorder = Recorder()
    connection, theirs = await connect(recorder)
    message = Hello("x" * 250)
    while not connection.is_congested:
        connection.send(message)
    assert await ended(recorder) == "the peer read nothing for 0.05 s"
    theirs.close()


@async_test
async def test_a_peer_that_reads_in_time_stays_connected():
    recorder = Recorder()
    connection, theirs = await connect(recorder, ConnectionLimits(stall_seconds=5))
    while not connection.is_congested:
        connection.send(Hello("x" * 250))
    loop = asyncio.get_running_loop()
    while connection.is_congested:
        await loop.sock_recv(theirs, 1 << 16)
    assert not recorder.reason.done()
    connection.close("enough")
    theirs.close()
    assert await ended(recorder)


@async_test
async def test_a_peer_that_leaves_too_much_unread_is_disconnected_at_once():
    recorder = Recorder()
    connection, theirs = await connect(
        recorder, ConnectionLimits(max_buffer_bytes=1 << 16, stall_seconds=60)
    )
    for _ in range(4000):
        connection.send(Hello("x" * 250))
    assert await ended(recorder) == "the peer left 65536 bytes unread"
    theirs.close()


@async_test
async def test_a_message_that_breaks_the_protocol_ends_the_connection():
    recorder = Recorder(ProtocolError("out of turn"))
    _, theirs = await connect(recorder)
    theirs.send(pack(b"\xc0") + pack(b"\xc0"))
    assert await ended(recorder) == "protocol error: out of turn"
    assert len(recorder.payloads) == 1  # nothing is read after it
    theirs.close()


@async_test
async def test_random_bytes_never_do_more_than_end_the_connection():
    for seed in range(20):
        recorder = Recorder()
        _, theirs = await connect(recorder)
        theirs.send(bytes([seed]) * 3 + os.urandom(4096))
        theirs.close()
        assert await ended(recorder)


@async_test
async def test_what_was_sent_before_close_arrives():
    recorder = Recorder()
    connection, theirs = await connect(recorder)
    connection.send(AbortRequest(7))
    connection.close("done")
    assert await ended(recorder) == "done"
    reader = FrameReader(max_frame_bytes=MAX_FRAME)
    assert len(list(reader.feed(theirs.recv(4096)))) == 1
    theirs.close()


def test_the_longest_request_fits_a_frame():
    limits = ConnectionLimits()
    prompt_bytes = 4 * 131_072
    chain_bytes = 131_072 // 16 * (32 + 2)
    assert prompt_bytes + chain_bytes + 65_536 < limits.max_frame_bytes
