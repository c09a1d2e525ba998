"""A foreign server's numbered batches: gaps, replays, restarts."""

from __future__ import annotations

from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.events import KvListed, KvReported
from headrace.core.router.foreign_blocks import (
    AllCleared,
    BlocksStored,
    ForeignBlocks,
    foreign_root,
)
from headrace.core.router.foreign_feed import ForeignFeed, Hearing
from headrace.core.router.knowledge import Feed
from headrace.core.router.requests import keys_of
from headrace.types import ReplicaId

UNIT = 4
FIRST, SECOND, THIRD = (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)


def line() -> ForeignFeed:
    return ForeignFeed(ReplicaId("r"), ForeignBlocks(UNIT))


def stored(tokens: tuple[int, ...], life: str = "") -> BlocksStored:
    return BlocksStored(
        names=[f"{life}{tokens}".encode()], parent=None, tokens=tokens, block_size=UNIT
    )


def key(tokens: tuple[int, ...]) -> int:
    return keys_of(prompt_chain(foreign_root(UNIT), tokens, UNIT))[0]


def test_batches_are_changes_of_one_epoch_numbered_from_one() -> None:
    feed = line()
    for number, tokens in enumerate((FIRST, SECOND)):
        assert feed.hear(number) is Hearing.NEXT
        expected = KvReported(ReplicaId("r"), number + 1, (key(tokens),), (), 1)
        assert feed.take(number, [stored(tokens)]) == expected


def test_a_gap_that_is_not_mended_makes_what_was_known_void() -> None:
    feed, router = line(), Feed()
    for number, tokens in ((0, FIRST), (2, THIRD)):
        feed.hear(number)
        event = feed.take(number, [stored(tokens)])
        assert isinstance(event, KvReported)
        router.change(event.epoch, event.number)
    assert (event.stored, event.epoch) == ((key(THIRD),), 2)
    assert router.missed


def test_a_gap_that_is_replayed_is_none() -> None:
    feed = line()
    feed.take(0, [stored(FIRST)], b"zero")
    assert feed.hear(2) is Hearing.MISSED
    assert feed.asks_from == 0
    assert feed.is_same(0, b"zero")
    assert feed.take(0, [stored(FIRST)]) is None
    for number in (1, 2):
        event = feed.take(number, [])
        assert isinstance(event, KvReported)
        assert event.epoch == 1
    assert feed.take(2, []) is None  # the one that showed the gap
    assert feed.hear(3) is Hearing.NEXT


def test_what_was_replayed_already_is_old_when_it_comes_live_and_no_restart() -> None:
    feed = line()
    for number in range(5):
        feed.take(number, [stored((number,) * UNIT)])
    assert [feed.hear(number) for number in (3, 4, 5)] == [Hearing.OLD, Hearing.OLD, Hearing.NEXT]


def test_a_number_that_goes_back_is_another_process_whose_cache_was_empty() -> None:
    feed = line()
    for number, tokens in enumerate((FIRST, SECOND)):
        feed.hear(number)
        feed.take(number, [stored(tokens)])
    assert feed.hear(0) is Hearing.NEXT
    event = feed.take(0, [stored(THIRD, "b")])
    assert event == KvReported(ReplicaId("r"), 1, (key(THIRD),), (), 2)
    assert feed.take(1, [AllCleared()]) == KvListed(ReplicaId("r"), 2, (), 2)


def test_a_replay_of_another_process_is_found_out_by_the_batch_heard_last() -> None:
    feed = line()
    feed.take(0, [stored(FIRST)], b"zero")
    assert not feed.is_same(0, b"another zero")
    assert not feed.is_same(1, b"zero")
    assert line().is_same(0, b"whatever comes first")


def test_a_late_beginning_is_known_to_lack_something_until_the_cache_is_cleared() -> None:
    feed, router = line(), Feed()
    feed.hear(7)
    event = feed.take(7, [stored(FIRST)])
    assert isinstance(event, KvReported)
    router.change(event.epoch, event.number)
    assert router.missed
    listed = feed.take(8, [AllCleared(), stored(SECOND)])
    assert isinstance(listed, KvListed)
    router.listing(listed.epoch, listed.number)
    assert (listed.keys, router.missed) == ((key(SECOND),), "")
