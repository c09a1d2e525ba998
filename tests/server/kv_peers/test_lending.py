"""Lender and Borrower on a real socket: what comes is right or does not come.

Each complaint that a test names was made of another server's transfers between replicas.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.clock import MonotonicClock
from headrace.core.kvcache.prefix import Content
from headrace.core.kvcache.transfers import Direction, Tier, Transfer, TransferDone
from headrace.server.kv_peers import borrower as borrowing
from headrace.server.kv_peers import wire
from headrace.server.kv_peers.borrower import Borrower
from headrace.server.kv_peers.lender import CHUNK_BYTES, Lender
from headrace.server.kv_tiers.segment import BlockFormat
from headrace.testing.async_test import async_test
from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from headrace.core.kvcache.transfers import TierEvent

SIZE = CHUNK_BYTES // 3  # three blocks a chunk
FORM = BlockFormat(model_identity="model", block_size=4, block_bytes=SIZE)
NUM_BLOCKS = 16


def digest_of(number: int) -> bytes:
    return bytes([number + 1]) * 32


class Shop:
    """Blocks in an array, block i holds the number i; and what is known of them."""

    def __init__(self, *numbers: int) -> None:
        self.blocks = np.zeros((NUM_BLOCKS, SIZE), np.uint8)
        self.contents: dict[BlockId, Content] = {}
        for number in numbers:
            self.blocks[number] = number
            self.contents[BlockId(number)] = Content(digest_of(number), b"", b"")
        self.before_read: Callable[[int], None] = lambda _: None
        self.num_reads = 0

    def evict(self, number: int) -> None:
        self.contents.pop(BlockId(number), None)
        self.blocks[number] = 0xEE

    def held(self, digests: Iterable[bytes]) -> list[tuple[BlockId, Content]]:
        found = []
        for digest in digests:
            block = BlockId(digest[0] - 1)
            if block not in self.contents:
                break
            found.append((block, self.contents[block]))
        return found

    def num_still(self, held: Iterable[tuple[BlockId, Content]]) -> int:
        count = 0
        for block, content in held:
            if self.contents.get(block) is not content:
                break
            count += 1
        return count

    def read_blocks(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        self.num_reads += 1
        self.before_read(self.num_reads)
        return self.blocks[list(blocks)]


class Customer:
    """A borrower, its device, and how its transfers ended."""

    def __init__(self, form: BlockFormat = FORM) -> None:
        self.blocks = np.full((NUM_BLOCKS, SIZE), 0xAA, np.uint8)
        self.told: asyncio.Queue[TierEvent] = asyncio.Queue()
        self.borrower = Borrower(self, form, clock=MonotonicClock(), tell=self.told.put_nowait)
        self.num_transfers = 0

    def write_blocks(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        self.blocks[list(blocks)] = content

    async def fetch(self, path: Path, *numbers: int) -> int:
        """Fetch blocks into places of their own; check them; return how many came."""
        self.blocks[:] = 0xAA
        self.num_transfers += 1
        self.borrower.submit(
            Transfer(
                number=self.num_transfers,
                direction=Direction.LOAD,
                blocks=tuple(BlockId(place) for place in range(len(numbers))),
                digests=tuple(map(digest_of, numbers)),
                source=str(path),
            )
        )
        done = await self.told.get()
        assert isinstance(done, TransferDone)
        assert done.number == self.num_transfers
        for place, number in enumerate(numbers):
            assert (self.blocks[place] == (number if place < done.num_done else 0xAA)).all()
        assert [(read.tier, read.num_blocks) for read in done.reads] == (
            [(Tier.PEER, done.num_done)] if done.num_done else []
        )
        return done.num_done


@asynccontextmanager
async def open_shop(shop: Shop, path: Path) -> AsyncIterator[Lender]:
    lender = Lender(shop, shop, FORM)
    lender.start(path)
    try:
        yield lender
    finally:
        await lender.stop()


@asynccontextmanager
async def customer(form: BlockFormat = FORM) -> AsyncIterator[Customer]:
    found = Customer(form)
    found.borrower.start()
    try:
        yield found
    finally:
        await found.borrower.stop()


@contextmanager
def impostor(path: Path, serve: Callable[[socket.socket], object]) -> Iterator[None]:
    """Somebody else listens where a lender should."""

    def run() -> None:
        peer, _ = listening.accept()
        with peer:
            peer.settimeout(5)
            with suppress(OSError):
                serve(peer)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(5)
        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r0.kv"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrowing, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(borrowing, "AVOID_SECONDS", 0.0)


@async_test
async def test_blocks_come_in_the_order_they_were_asked_for_over_one_connection(path: Path):
    shop = Shop(*range(10))
    async with open_shop(shop, path) as lender, customer() as friend:
        assert await friend.fetch(path, *range(10)) == 10
        assert await friend.fetch(path, 7, 3) == 2
        assert len(lender._borrowers) == 1
        assert shop.num_reads == 4 + 1  # chunks of three blocks


@async_test
async def test_a_fetch_ends_before_the_first_block_that_is_not_there(path: Path):
    async with open_shop(Shop(1, 2, 4), path), customer() as friend:
        assert await friend.fetch(path, 1, 2, 3, 4) == 2
        assert await friend.fetch(path, 3) == 0
        assert await friend.fetch(path, 4) == 1


@async_test
async def test_a_block_that_is_evicted_while_it_is_copied_is_not_sent(path: Path):
    shop = Shop(*range(8))
    shop.before_read = lambda number: shop.evict(4) if number == 2 else None
    async with open_shop(shop, path), customer() as friend:
        assert await friend.fetch(path, *range(8)) == 4


@async_test
async def test_another_model_or_size_of_blocks_is_a_miss(path: Path):
    """vllm-project/vllm#29503 compares in a handshake; #42895: accuracy of 3 % without."""
    other = BlockFormat(model_identity="other", block_size=4, block_bytes=SIZE)
    larger = BlockFormat(model_identity="model", block_size=8, block_bytes=SIZE)
    async with open_shop(Shop(1), path):
        for form in (other, larger):
            async with customer(form) as stranger:
                assert await stranger.fetch(path, 1) == 0
        async with customer() as friend:
            assert await friend.fetch(path, 1) == 1


@async_test
async def test_a_neighbour_that_is_not_there_is_a_miss_and_may_come_back(path: Path):
    async with customer() as friend:
        assert await friend.fetch(path, 1) == 0
        async with open_shop(Shop(1), path):
            assert await friend.fetch(path, 1) == 1
        assert await friend.fetch(path, 1) == 0
        async with open_shop(Shop(1, 2), path):  # it was started again
            assert await friend.fetch(path, 1, 2) == 2


@async_test
async def test_a_neighbour_that_failed_is_left_alone_for_a_while(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(borrowing, "AVOID_SECONDS", 60.0)
    async with customer() as friend:
        assert await friend.fetch(path, 1) == 0
        async with open_shop(Shop(1), path):
            assert await friend.fetch(path, 1) == 0


def _greet(peer: socket.socket) -> list[bytes]:
    wire.greet(peer, FORM)
    return wire.receive_question(peer)


def _hang(peer: socket.socket) -> None:
    _greet(peer)
    peer.recv(1)


def _die_within_a_block(peer: socket.socket) -> None:
    first, *_ = _greet(peer)
    wire.send_block(peer, FORM, first, np.full(SIZE, 1, np.uint8).data)
    peer.sendall(wire.BLOCK + bytes(90))


def _corrupt(peer: socket.socket) -> None:
    first, second, *_ = _greet(peer)
    wire.send_block(peer, FORM, first, np.full(SIZE, 1, np.uint8).data)
    block = np.full(SIZE, 2, np.uint8)
    head = wire._RECORD.pack(wire.BLOCK, second, FORM.checksum(second, block.data))
    block[SIZE // 2] ^= 1
    peer.sendall(head.ljust(wire.HEAD_BYTES, b"\0") + block.tobytes())
    peer.recv(1)


def _answer_with_other_blocks(peer: socket.socket) -> None:
    _, second, *_ = _greet(peer)
    wire.send_block(peer, FORM, second, np.full(SIZE, 2, np.uint8).data)
    peer.recv(1)


def _talk_nonsense(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
    peer.recv(1)


@pytest.mark.parametrize(
    ("serve", "num_good"),
    [
        (_hang, 0),
        (_die_within_a_block, 1),
        (_corrupt, 1),
        (_answer_with_other_blocks, 0),
        (_talk_nonsense, 0),
    ],
)
def test_a_bad_neighbour_costs_its_blocks_and_nothing_else(
    path: Path, serve: Callable[[socket.socket], None], num_good: int
):
    async def run() -> None:
        async with customer() as friend:
            with impostor(path, serve):  # its socket is in the way no more when it has gone
                assert await friend.fetch(path, 1, 2, 3) == num_good
            async with open_shop(Shop(1), path):
                assert await friend.fetch(path, 1) == 1

    asyncio.run(run())


@pytest.mark.parametrize("greets", [True, False])
def test_a_neighbour_that_drips_is_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch, greets: bool
):
    monkeypatch.setattr(borrowing, "TRANSFER_SECONDS", 0.3)
    given_up = threading.Event()

    def drip(peer: socket.socket) -> None:
        if greets:
            _greet(peer)
        try:
            while not given_up.wait(0.02):
                peer.sendall(wire.BLOCK[:1])
        except OSError:
            given_up.set()

    async def run() -> None:
        async with customer() as friend:
            with impostor(path, drip):
                assert await friend.fetch(path, 1) == 0

    asyncio.run(run())
    assert given_up.is_set()


@async_test
async def test_a_borrower_that_asks_for_too_much_is_disconnected(path: Path):
    async with open_shop(Shop(1), path), customer() as friend:

        def ask() -> bytes:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(5)
                peer.connect(str(path))
                wire.greet(peer, FORM)
                peer.sendall(wire._ASK.pack(wire.ASK, wire.MAX_ASKED + 1))
                return peer.recv(1)

        assert await asyncio.to_thread(ask) == b""
        assert await friend.fetch(path, 1) == 1


def test_only_the_owner_may_open_the_socket_and_it_is_gone_at_the_end(path: Path):
    modes = []

    async def run() -> None:
        async with open_shop(Shop(1), path):
            modes.append(mode_of(path))

    asyncio.run(run())
    assert modes == [0o600]
    assert not path.exists()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777
