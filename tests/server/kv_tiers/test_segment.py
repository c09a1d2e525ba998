"""Segment: what comes back is what went in, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.server.kv_tiers.segment import (
    HEAD_BYTES,
    BlockFormat,
    Segment,
    create_segment,
    open_segment,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

FORM = BlockFormat(model_identity="model/f16", block_size=4, block_bytes=40)
DIGESTS = [bytes([i + 1]) * 32 for i in range(3)]


def block_of(number: int) -> npt.NDArray[np.uint8]:
    return np.full(FORM.block_bytes, 10 + number, np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "00000001.kv"
    segment = create_segment(path, FORM)
    for number, digest in enumerate(DIGESTS):
        segment.append(digest, block_of(number).data)
    segment.close()
    return path


def opened(path: Path, form: BlockFormat = FORM) -> Segment | None:
    segment = open_segment(path, form)
    if segment is not None:
        segment.scan()
    return segment


def read(segment: Segment, digest: bytes) -> npt.NDArray[np.uint8] | None:
    block = np.zeros(FORM.block_bytes, np.uint8)
    return block if segment.read_into(digest, block) else None


def contents(path: Path) -> list[bool]:
    """Whether each block comes back; anything but its own content is an error."""
    segment = opened(path)
    if segment is None:
        return [False] * len(DIGESTS)
    found = []
    for number, digest in enumerate(DIGESTS):
        block = read(segment, digest) if digest in segment.places else None
        assert block is None or (block == block_of(number)).all()
        found.append(block is not None)
    segment.close()
    return found


def test_blocks_come_back_from_a_file_that_was_closed(path: Path):
    assert contents(path) == [True, True, True]


def test_no_byte_can_be_flipped_unnoticed(path: Path):
    sound = path.read_bytes()
    for place in range(len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        found = contents(path)
        record = (place - HEAD_BYTES) // FORM.record_bytes
        if place < HEAD_BYTES:
            assert not any(found)
        else:
            others = [other for number, other in enumerate(found) if number != record]
            assert all(others)
            offset = (place - HEAD_BYTES) % FORM.record_bytes
            assert found[record] == (52 <= offset < HEAD_BYTES)  # only the filling is of no matter


def test_a_file_cut_anywhere_holds_what_was_whole_and_grows_again(path: Path):
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        whole = max(0, length - HEAD_BYTES) // FORM.record_bytes if length >= HEAD_BYTES else 0
        assert contents(path) == [number < whole for number in range(3)]
        if length >= HEAD_BYTES:
            assert path.stat().st_size == HEAD_BYTES + whole * FORM.record_bytes


def test_a_block_under_anothers_name_is_not_believed(path: Path):
    content = bytearray(path.read_bytes())
    first, second = HEAD_BYTES + 4, HEAD_BYTES + FORM.record_bytes + 4
    content[first : first + 32], content[second : second + 32] = DIGESTS[1], DIGESTS[0]
    path.write_bytes(content)
    assert contents(path) == [False, False, True]


def test_a_damaged_block_stays_condemned_at_the_next_start(path: Path):
    content = bytearray(path.read_bytes())
    content[HEAD_BYTES + FORM.record_bytes - 1] ^= 1
    path.write_bytes(content)
    segment = opened(path)
    assert segment is not None
    assert read(segment, DIGESTS[0]) is None
    segment.close()
    again = open_segment(path, FORM)
    assert again is not None
    assert again.scan() == 0  # known to be bad: not counted twice
    assert list(again.places) == DIGESTS[1:]


@pytest.mark.parametrize(
    "other",
    [
        BlockFormat(model_identity="model/f32", block_size=4, block_bytes=40),
        BlockFormat(model_identity="model/f16", block_size=8, block_bytes=40),
        BlockFormat(model_identity="model/f16", block_size=4, block_bytes=41),
    ],
)
def test_a_file_of_another_model_is_not_opened_and_not_changed(path: Path, other: BlockFormat):
    before = path.read_bytes()
    assert opened(path, other) is None
    assert path.read_bytes() == before


def test_only_the_owner_may_read_it(path: Path):
    assert path.stat().st_mode & 0o777 == 0o600
