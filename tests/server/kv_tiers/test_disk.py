"""DiskTier: limits, restarts, strangers' files and disks that are full."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.server.kv_tiers import disk as module
from headrace.server.kv_tiers.disk import RETRY, DiskTier
from headrace.server.kv_tiers.segment import HEAD_BYTES, BlockFormat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

FORM = BlockFormat(model_identity="model", block_size=4, block_bytes=1000)
BIG = 1 << 30


class HandClock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


class FullDisk:
    """``os.pwritev`` with so many bytes of room."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, file: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        data = b"".join(parts)
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[: self.room]
        self.room -= len(data)
        return os.pwrite(file, data, offset)


def digest_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def block_of(number: int) -> npt.NDArray[np.uint8]:
    return np.full(FORM.block_bytes, number % 251, np.uint8)


def tier_at(path: Path, max_bytes: int = BIG, form: BlockFormat = FORM) -> DiskTier:
    return DiskTier(path, form, max_bytes=max_bytes, clock=HandClock())


def has(tier: DiskTier, number: int) -> bool:
    block = np.zeros(FORM.block_bytes, np.uint8)
    found = tier.read_into(digest_of(number), block)
    assert not found or (block == block_of(number)).all()
    return found


def test_what_one_engine_wrote_the_next_one_reads(tmp_path: Path):
    tier = tier_at(tmp_path)
    assert list(tier.open()) == []
    for number in range(5):
        assert tier.put(digest_of(number), block_of(number)) == ()
    tier.close()
    again = tier_at(tmp_path)
    assert [set(digests) for digests in again.open()] == [{digest_of(n) for n in range(5)}]
    assert all(has(again, number) for number in range(5))
    assert again.used_bytes == HEAD_BYTES + 5 * FORM.record_bytes


def test_the_oldest_file_goes_when_the_limit_is_reached(tmp_path: Path):
    limit = 40 * FORM.record_bytes
    tier = tier_at(tmp_path, limit)
    list(tier.open())
    there: set[bytes] = set()
    for number in range(200):
        gone = tier.put(digest_of(number), block_of(number))
        assert gone is not None
        there = (there | {digest_of(number)}) - set(gone)
        on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.kv"))
        assert on_disk == tier.used_bytes <= limit
    assert len(there) > 20
    assert {digest_of(n) for n in range(200) if has(tier, n)} == there
    tier.close()
    assert {d for digests in tier_at(tmp_path, limit).open() for d in digests} == there


def test_a_full_disk_is_told_once_costs_no_block_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, module.__name__)
    clock, disk = HandClock(), FullDisk(HEAD_BYTES + 2 * FORM.record_bytes + 300)
    tier = DiskTier(tmp_path, FORM, max_bytes=BIG, clock=clock, write=disk)
    list(tier.open())
    kept = [tier.put(digest_of(n), block_of(n)) is not None for n in range(6)]
    assert kept == [True, True, False, False, False, False]
    clock.time += RETRY + 1
    assert tier.put(digest_of(7), block_of(7)) is None  # still full
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the disk is full" in caplog.text
    assert [has(tier, n) for n in range(3)] == [True, True, False]
    disk.room = 1 << 20
    assert tier.put(digest_of(8), block_of(8)) is None  # not asked again so soon
    clock.time += RETRY + 1
    assert tier.put(digest_of(8), block_of(8)) == ()
    assert has(tier, 8)
    tier.close()
    (found,) = tier_at(tmp_path).open()
    assert found == (digest_of(0), digest_of(1), digest_of(8))


def test_a_disk_that_fails_to_read_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tier = tier_at(tmp_path)
    list(tier.open())
    tier.put(digest_of(1), block_of(1))
    tier.put(digest_of(2), block_of(2))
    os.truncate(tmp_path / "00000001.kv", HEAD_BYTES + FORM.record_bytes + 500)
    assert [has(tier, 1), has(tier, 2), has(tier, 2)] == [True, False, False]
    assert tier.num_quarantined == 1
    assert "is damaged" in caplog.text


def test_files_of_others_are_left_alone(tmp_path: Path):
    stranger = tmp_path / "00000001.kv"
    stranger.write_bytes(b"my diary")
    (tmp_path / "notes.kv").write_bytes(b"more")
    (tmp_path / "00000002.kv").symlink_to(tmp_path / "notes.kv")
    tier = tier_at(tmp_path, 10 * FORM.record_bytes)
    assert list(tier.open()) == []
    for number in range(50):
        tier.put(digest_of(number), block_of(number))
    tier.close()
    assert stranger.read_bytes() == b"my diary"
    assert (tmp_path / "notes.kv").read_bytes() == b"more"


def test_another_models_blocks_stay_for_when_it_comes_back(tmp_path: Path):
    other = BlockFormat(model_identity="other", block_size=4, block_bytes=1000)
    for form in (FORM, other, FORM):
        tier = tier_at(tmp_path, form=form)
        found = list(tier.open())
        tier.put(digest_of(1), block_of(1))
        tier.close()
    assert found == [(digest_of(1),)]


def test_two_engines_do_not_share_a_directory(tmp_path: Path):
    first, second = tier_at(tmp_path), tier_at(tmp_path)
    list(first.open())
    with pytest.raises(BlockingIOError):
        list(second.open())
    assert second.put(digest_of(1), block_of(1)) is None
    first.close()
    assert list(second.open()) == []
