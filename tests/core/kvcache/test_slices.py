"""Long tables change hands by slices, and nobody goes short of memory or content for that."""

from __future__ import annotations

import pytest

from headrace.core.kvcache.cache import BlockCounts, KVCache
from headrace.core.kvcache.slices import PAUSE
from headrace.core.kvcache.table import BlockTable
from headrace.types import StepId

SIZE = 4
LONG = range(10 * SIZE)


def cache_of(num_blocks: int = 16, *, slice_blocks: int = 3) -> KVCache:
    return KVCache(num_blocks=num_blocks, block_size=SIZE, slice_blocks=slice_blocks)


def table_of(*tokens: int) -> BlockTable:
    return BlockTable(list(tokens), SIZE, b"root")


def computed(kv: KVCache, *tokens: int) -> BlockTable:
    table = table_of(*tokens)
    assert kv.grow(table, len(tokens))
    kv.publish(table, len(tokens))
    return table


def test_a_long_table_is_given_back_a_slice_with_each_event():
    kv = cache_of()
    kv.release(computed(kv, *LONG), after=None)
    assert kv.counts() == BlockCounts(total=16, free=9, cached=3, held=7, leaving=7)
    for free, now in ((12, 1.0), (15, 2.0)):
        assert kv.slices.next_wakeup() is not None
        kv.slices.work(now)
        assert kv.num_free == free
        assert kv.slices.next_wakeup() == now + PAUSE
        kv.check_integrity([])
    kv.slices.work(3.0)
    assert (kv.num_free, kv.slices.next_wakeup()) == (16, None)


def test_the_tail_goes_before_the_beginning_and_is_evicted_first():
    kv = cache_of()
    table = computed(kv, *LONG)
    blocks = table.blocks
    kv.release(table, after=None)
    for _ in range(3):
        kv.slices.work(0.0)
    assert tuple(kv.evictor.victims()) == blocks[::-1]


def test_what_waits_for_a_step_is_given_back_by_slices_when_it_is_done():
    kv = cache_of()
    kv.release(computed(kv, *LONG), after=StepId(1))
    kv.slices.work(0.0)
    assert (kv.num_free, kv.slices.are_due) == (6, False)
    kv.step_done(StepId(1))
    assert (kv.num_free, kv.slices.are_due) == (9, True)
    assert kv.slices.leaving.num_places == 7


def test_who_needs_memory_gets_all_that_is_leaving_at_once():
    kv = cache_of()
    kv.release(computed(kv, *LONG), after=None)
    other = table_of(*range(100, 100 + 16 * SIZE))
    assert kv.grow(other, len(other.tokens))
    assert not kv.slices.are_due
    kv.check_integrity([other])


def test_no_more_is_freed_for_somebody_than_slices_that_do():
    kv = cache_of()
    kv.release(computed(kv, *LONG), after=None)
    assert kv.slices.regain(0) == 0
    assert kv.slices.regain(2) == 3
    assert kv.slices.regain(100) == 4


def test_a_long_prefix_is_taken_a_slice_with_each_event():
    kv = cache_of()
    first = computed(kv, *LONG)
    second = table_of(*LONG, 99)
    assert kv.take_cached(second) is None
    assert second.blocks == first.blocks[:3]
    assert kv.take_cached(second) is None  # asked again in the same event: no more
    assert second.blocks == first.blocks[:3]
    for num_blocks in (6, 9, 10):
        assert kv.slices.are_due
        kv.slices.work(0.0)
        assert second.blocks == first.blocks[:num_blocks]
        kv.check_integrity([first, second])
    assert not kv.slices.are_due
    assert kv.take_cached(second) == 10 * SIZE
    assert kv.take_cached(second) == 0


@pytest.mark.parametrize("length", [3, 6])
def test_a_prefix_of_whole_slices_keeps_nobody_waiting(length: int):
    kv = cache_of(slice_blocks=length)
    computed(kv, *range(length * SIZE))
    assert kv.take_cached(table_of(*range(length * SIZE), 99)) == length * SIZE


def test_of_several_tables_the_first_goes_on_first():
    kv = cache_of(32)
    first = computed(kv, *LONG)
    tables = [table_of(*LONG, 98), table_of(*LONG, 99)]
    assert [kv.take_cached(table) for table in tables] == [None, None]
    for sizes in ((6, 3), (9, 3), (10, 3), (10, 6)):
        kv.slices.work(0.0)
        assert tuple(len(table.blocks) for table in tables) == sizes
    kv.check_integrity([first, *tables])


def test_content_that_went_meanwhile_ends_the_taking():
    kv = cache_of(12)
    kv.release(computed(kv, *LONG), after=None)
    kv.slices.regain(12)
    second = table_of(*LONG, 99)
    assert kv.take_cached(second) is None
    other = table_of(*range(100, 100 + 6 * SIZE))
    assert kv.grow(other, len(other.tokens))  # the last four blocks of the chain go for it
    for _ in range(2):
        kv.slices.work(0.0)
    assert not kv.slices.are_due
    assert kv.take_cached(second) == 6 * SIZE
    kv.check_integrity([second, other])


def test_who_gives_up_takes_no_more_and_can_begin_anew():
    kv = cache_of()
    first = computed(kv, *LONG)
    second = table_of(*LONG, 99)
    kv.take_cached(second)
    kv.release(second, after=None)
    assert not kv.slices.are_due
    kv.slices.work(0.0)
    assert second.blocks == ()
    kv.check_integrity([first])
    assert kv.take_cached(second) is None


def test_a_table_of_nobodys_takes_all_at_once():
    kv = cache_of()
    first = computed(kv, *LONG)
    second = table_of(*LONG, 99)
    kv.slices.taking.take_all(second)
    assert second.blocks == first.blocks
    assert kv.take_cached(second) == 0
