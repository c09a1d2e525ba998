"""Coming: who waits for what another sequence computes."""

from __future__ import annotations

from headrace.core.kvcache.cache import KVCache
from headrace.core.kvcache.coming import OF_A_LOAD, Coming
from headrace.core.kvcache.prefix import PrefixIndex
from headrace.core.kvcache.table import BlockTable

SIZE = 4
PROMPT = range(12)


def table_of(*tokens: int, urgency: int = 0) -> BlockTable:
    return BlockTable(list(tokens), SIZE, b"", urgency=urgency)


def cache_with_maker(urgency: int = 0, *, share_waiting: bool = True) -> tuple[KVCache, BlockTable]:
    """A sequence is computing ``PROMPT``."""
    kv = KVCache(num_blocks=32, block_size=SIZE, share_waiting=share_waiting)
    maker = table_of(*PROMPT, urgency=urgency)
    assert kv.grow(maker, len(PROMPT))
    return kv, maker


def test_content_that_is_being_computed_is_awaited_and_settled_once():
    kv, maker = cache_with_maker()
    waiter = table_of(*PROMPT, 99)
    assert kv.coming.awaits(waiter)
    assert waiter.awaits == maker.digest(0)
    assert kv.coming.take_settled() == []
    kv.publish(maker, 8)
    assert kv.coming.take_settled() == [maker.digest(0)]
    assert kv.coming.take_settled() == []


def test_the_next_block_is_awaited_when_the_first_has_come():
    kv, maker = cache_with_maker()
    kv.publish(maker, 8)
    waiter = table_of(*PROMPT, 99)
    assert kv.coming.awaits(waiter)
    assert waiter.awaits == maker.digest(2)


def test_nothing_is_awaited_when_all_has_come_or_is_different():
    kv, maker = cache_with_maker()
    kv.publish(maker, 12)
    assert not kv.coming.awaits(table_of(*PROMPT, 99))
    assert not kv.coming.awaits(table_of(50, 51, 52, 53, 54))


def test_content_that_nobody_awaits_is_not_told():
    kv, maker = cache_with_maker()
    kv.publish(maker, 12)
    assert kv.coming.take_settled() == []


def test_a_maker_that_leaves_settles_what_it_had_announced():
    kv, maker = cache_with_maker()
    waiter = table_of(*PROMPT, 99)
    assert kv.coming.awaits(waiter)
    kv.release(maker, after=None)
    assert kv.coming.take_settled() == [waiter.awaits]
    assert not kv.coming.awaits(waiter)
    kv.check_integrity([])


def test_nobody_waits_for_a_less_urgent_one():
    kv, _ = cache_with_maker(urgency=2)
    assert not kv.coming.awaits(table_of(*PROMPT, 99, urgency=1))
    assert kv.coming.awaits(table_of(*PROMPT, 99, urgency=2))


def test_switched_off_nobody_waits():
    kv, _ = cache_with_maker(share_waiting=False)
    assert not kv.coming.awaits(table_of(*PROMPT, 99))


def test_nothing_is_taken_behind_a_block_that_is_in_flight():
    """Else the block in flight would never be published, and awaited for ever."""
    kv, maker = cache_with_maker()
    kv.publish(maker, 12)
    other = table_of(1, 1, 1, 1, *range(20, 29))
    assert kv.grow(other, 4)
    ahead = table_of(1, 1, 1, 1, *range(20, 29))
    assert kv.grow(ahead, 12)
    kv.publish(ahead, 12)
    assert kv.take_cached(other) == 0
    kv.publish(other, 4)
    assert kv.take_cached(other) == 8
    kv.check_integrity([maker, other, ahead])


def test_those_who_compute_are_found_to_be_strangers_if_they_are_not_known():
    kv, maker = cache_with_maker()
    assert kv.coming.of_strangers([maker]) == []
    assert kv.coming.of_strangers([]) == [maker.digest(i) for i in range(3)]


def nine_of(urgency: int) -> BlockTable:
    return BlockTable(list(range(9)), 4, b"root", urgency=urgency)


def test_a_load_is_waited_for_by_everybody_even_where_nothing_is_shared():
    for shares in (True, False):
        coming = Coming(PrefixIndex(), shares=shares)
        load, waiting = nine_of(OF_A_LOAD), nine_of(0)
        coming.announce(load.digest(0), load)
        assert coming.awaits(waiting)
        coming.give_up(load)
        assert not coming.awaits(waiting)
        assert coming.take_settled() == [load.digest(0)]


def test_a_sequence_is_not_waited_for_where_nothing_is_shared():
    coming = Coming(PrefixIndex(), shares=False)
    maker, waiting = nine_of(0), nine_of(0)
    coming.announce(maker.digest(0), maker)
    assert not coming.awaits(waiting)


def long_waiter(kv: KVCache, maker: BlockTable) -> BlockTable:
    """Has all of a maker's prompt in common with it, and knows its digests."""
    waiter = table_of(*range(20), 99)
    for index in range(5):
        waiter.digest(index)
        maker.digest(index)
    assert kv.coming.awaits(waiter)
    return waiter


def under_way(urgency: int = 0) -> tuple[KVCache, BlockTable]:
    """A sequence is computing the first block of a longer prompt."""
    kv = KVCache(num_blocks=32, block_size=SIZE)
    maker = table_of(*range(21), urgency=urgency)
    assert kv.grow(maker, 4)
    return kv, maker


def test_whoever_knows_its_digests_waits_for_all_that_it_has_in_common():
    kv, maker = under_way()
    waiter = long_waiter(kv, maker)
    assert waiter.awaits == maker.digest(4)
    for end in range(4, 20, 4):
        kv.grow(maker, end + 4)
        kv.publish(maker, end)
        assert kv.coming.take_settled() == []
    kv.publish(maker, 20)
    assert kv.coming.take_settled() == [maker.digest(4)]


def test_who_parts_earlier_waits_for_less():
    kv, maker = under_way()
    waiter = table_of(*range(9), 50, 51, 52, 53)
    for table in (maker, waiter):
        table.digest(2)
    assert kv.coming.awaits(waiter)
    assert waiter.awaits == maker.digest(1)


def test_what_a_maker_would_have_come_to_is_settled_when_it_leaves():
    kv, maker = under_way()
    waiter = long_waiter(kv, maker)
    kv.release(maker, after=None)
    assert kv.coming.take_settled() == [waiter.awaits]


def test_what_a_maker_finds_cached_is_settled():
    kv, maker = under_way()
    waiter = long_waiter(kv, maker)
    other = table_of(*range(21))
    kv.grow(other, 20)
    kv.publish(other, 20)
    kv.publish(maker, 4)
    assert kv.coming.take_settled() == []
    assert kv.take_cached(maker) == 16
    assert kv.coming.take_settled() == [waiter.awaits]
