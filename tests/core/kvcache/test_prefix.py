"""PrefixIndex: what is told of its changes."""

from __future__ import annotations

from headrace.core.kvcache.prefix import Changes, Content, PrefixIndex
from headrace.types import BlockId, block_key

FIRST, SECOND = bytes(range(32)), bytes(range(32, 64))


def stored(index: PrefixIndex, block: int, digest: bytes) -> bool:
    return index.add(BlockId(block), Content(digest, b"root", b""))


def test_a_key_is_the_head_of_its_digest():
    assert block_key(FIRST) == 0x0706050403020100


def test_what_was_stored_and_removed_is_told_once():
    index = PrefixIndex()
    assert index.take_changes() is None
    stored(index, 0, FIRST)
    stored(index, 1, SECOND)
    assert index.take_changes() == Changes((block_key(FIRST), block_key(SECOND)), ())
    assert index.take_changes() is None
    index.drop(BlockId(0))
    assert index.take_changes() == Changes((), (block_key(FIRST),))
    assert index.keys() == (block_key(SECOND),)


def test_content_that_came_and_went_between_two_looks_is_not_told():
    index = PrefixIndex()
    stored(index, 0, FIRST)
    index.drop(BlockId(0))
    assert index.take_changes() is None


def test_content_that_went_and_came_between_two_looks_is_not_told():
    index = PrefixIndex()
    stored(index, 0, FIRST)
    index.take_changes()
    index.drop(BlockId(0))
    stored(index, 3, FIRST)
    assert index.take_changes() is None


def test_the_same_content_in_a_second_block_is_no_change():
    index = PrefixIndex()
    stored(index, 0, FIRST)
    index.take_changes()
    assert not stored(index, 1, FIRST)
    assert index.take_changes() is None
