"""Mover: transfers have an end, whatever happens to the tiers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from headrace.clock import MonotonicClock
from headrace.core.kvcache.transfers import Direction, Tier, TierChanged, Transfer, TransferDone
from headrace.server.kv_tiers.disk import DiskTier
from headrace.server.kv_tiers.host import HostTier
from headrace.server.kv_tiers.mover import Mover
from headrace.server.kv_tiers.segment import HEAD_BYTES, BlockFormat
from headrace.testing.async_test import async_test
from headrace.types import BlockId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from headrace.core.kvcache.transfers import TierEvent

SIZE = 100
FORM = BlockFormat(model_identity="model", block_size=4, block_bytes=SIZE)


class Device:
    """Blocks in an array."""

    def __init__(self) -> None:
        self.blocks = np.zeros((16, SIZE), np.uint8)

    def read_blocks(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        return self.blocks[list(blocks)]

    def write_blocks(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        self.blocks[list(blocks)] = content


class Bench:
    """A mover, its device, and what it told."""

    def __init__(self, host: HostTier | None, disk: DiskTier | None) -> None:
        self.device = Device()
        self.told: asyncio.Queue[TierEvent] = asyncio.Queue()
        self.mover = Mover(host, disk, clock=MonotonicClock(), tell=self.told.put_nowait)
        self.mover.start(self.device, SIZE)
        self.num_transfers = 0

    async def move(
        self, direction: Direction, *numbers: int
    ) -> tuple[list[TierChanged], TransferDone]:
        """Block i holds the number i; return what was told."""
        self.num_transfers += 1
        self.mover.submit(
            Transfer(
                number=self.num_transfers,
                direction=direction,
                blocks=tuple(BlockId(number) for number in numbers),
                digests=tuple(digest_of(number) for number in numbers),
            )
        )
        changes: list[TierChanged] = []
        while isinstance(event := await self.told.get(), TierChanged):
            changes.append(event)
        assert event.number == self.num_transfers
        return changes, event

    async def load(self, *numbers: int) -> TransferDone:
        """Load into blocks that were wiped; nothing but the right content may be in them."""
        self.device.blocks[:] = 0xEE
        _, done = await self.move(Direction.LOAD, *numbers)
        for place, number in enumerate(numbers):
            expected = number if place < done.num_done else 0xEE
            assert (self.device.blocks[number] == expected).all()
        return done

    async def save(self, *numbers: int) -> tuple[list[TierChanged], TransferDone]:
        for number in numbers:
            self.device.blocks[number] = number
        _, read = await self.move(Direction.READ, *numbers)
        assert read.num_done == len(numbers)
        self.device.blocks[:] = 0xEE
        return await self.move(Direction.STORE, *numbers)


def digest_of(number: int) -> bytes:
    return bytes([number + 1]) * 32


def disk_at(path: Path, max_bytes: int = 1 << 20) -> DiskTier:
    return DiskTier(path, FORM, max_bytes=max_bytes, clock=MonotonicClock())


@async_test
async def test_blocks_come_back_from_the_quickest_tier_that_has_them(tmp_path: Path):
    bench = Bench(HostTier(max_bytes=3 * SIZE, block_bytes=SIZE), disk_at(tmp_path))
    changes, done = await bench.save(1, 2, 3, 4, 5)
    assert done.num_done == 5
    assert [(c.tier, len(c.stored), len(c.dropped)) for c in changes] == [
        (Tier.HOST, 3, 2),
        (Tier.DISK, 5, 0),
    ]
    done = await bench.load(5, 1, 2)
    assert [(read.tier, read.num_blocks) for read in done.reads] == [(Tier.HOST, 1), (Tier.DISK, 2)]
    assert all(read.seconds > 0 for read in done.reads)
    done = await bench.load(1, 2)  # they are in memory now
    assert [(read.tier, read.num_blocks) for read in done.reads] == [(Tier.HOST, 2)]
    await bench.mover.stop()


@async_test
async def test_a_load_ends_before_the_first_block_that_is_gone(tmp_path: Path):
    bench = Bench(None, disk_at(tmp_path))
    await bench.save(1, 2, 4)
    assert (await bench.load(1, 2, 3, 4)).num_done == 2
    await bench.mover.stop()


@async_test
async def test_a_damaged_block_is_a_miss_and_is_counted(tmp_path: Path):
    bench = Bench(None, disk_at(tmp_path))
    await bench.save(1, 2, 3)
    file = tmp_path / "00000001.kv"
    content = bytearray(file.read_bytes())
    content[HEAD_BYTES + 2 * FORM.record_bytes - 1] ^= 1
    file.write_bytes(content)
    changes, done = await bench.move(Direction.LOAD, 1, 2, 3)
    assert done.num_done == 1
    assert [change.quarantined for change in changes] == [1]
    await bench.mover.stop()


@async_test
async def test_a_restarted_mover_tells_what_is_on_the_disk(tmp_path: Path):
    first = Bench(None, disk_at(tmp_path))
    await first.save(1, 2)
    await first.mover.stop()
    second = Bench(None, disk_at(tmp_path))
    found = await second.told.get()
    assert isinstance(found, TierChanged)
    assert set(found.stored) == {digest_of(1), digest_of(2)}
    assert (await second.load(1, 2)).num_done == 2
    await second.mover.stop()


@async_test
async def test_a_disk_that_cannot_be_used_leaves_the_engine_without_one(tmp_path: Path):
    (tmp_path / "file").write_text("")
    bench = Bench(None, disk_at(tmp_path / "file"))
    found = await bench.told.get()
    assert isinstance(found, TierChanged)
    assert found.errors == 1
    _, done = await bench.save(1)
    assert done.num_done == 0
    assert (await bench.load(1)).num_done == 0
    await bench.mover.stop()


@async_test
async def test_a_device_that_fails_ends_the_transfer_and_not_the_thread(tmp_path: Path):
    bench = Bench(HostTier(max_bytes=3 * SIZE, block_bytes=SIZE), None)
    _, done = await bench.move(Direction.READ, 1, 2, 99)
    assert done.num_done == 0
    assert (await bench.save(1))[1].num_done == 1
    await bench.mover.stop()


@async_test
async def test_settling_waits_for_what_is_under_way(tmp_path: Path):
    bench = Bench(None, disk_at(tmp_path))
    bench.mover.submit(
        Transfer(
            number=1,
            direction=Direction.READ,
            blocks=(BlockId(1),),
            digests=(digest_of(1),),
        )
    )
    await bench.mover.settle(5.0)
    assert not bench.told.empty()
    await bench.mover.stop()
