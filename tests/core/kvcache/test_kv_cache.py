"""KVCache: sharing, copying, fences. Against a model: tests/property."""

from __future__ import annotations

import pytest

from headrace.core.kvcache.cache import BlockCounts, KVCache, PartialHit
from headrace.core.kvcache.table import BlockTable
from headrace.errors import InvariantBroken
from headrace.types import BlockId, StepId

SIZE = 8
ROOT = b"root"


def cache_of(num_blocks: int = 16, *, share_partial: bool = True) -> KVCache:
    return KVCache(num_blocks=num_blocks, block_size=SIZE, share_partial=share_partial)


def table_of(*tokens: int, root: bytes = ROOT) -> BlockTable:
    return BlockTable(list(tokens), SIZE, root)


def computed(kv: KVCache, *tokens: int, root: bytes = ROOT) -> BlockTable:
    """A sequence of which all tokens are computed and whose full blocks are published."""
    table = table_of(*tokens, root=root)
    kv.take_cached(table)
    assert kv.grow(table, len(tokens))
    kv.publish(table, len(tokens))
    return table


def test_full_blocks_are_shared_and_the_rest_is_not():
    kv = cache_of()
    first = computed(kv, *range(20))
    second = table_of(*range(20), 99)
    assert kv.take_cached(second) == 16
    assert second.blocks == first.blocks[:2]
    kv.check_integrity([first, second])


def test_a_table_under_way_takes_what_was_published_meanwhile():
    kv = cache_of()
    first, second = table_of(*range(24)), table_of(*range(24), 99)
    for table in (first, second):
        kv.grow(table, 8)
    kv.publish(second, 8)
    kv.grow(first, 24)
    kv.publish(first, 24)
    assert kv.take_cached(second) == 16
    assert second.blocks[1:] == first.blocks[1:]
    kv.check_integrity([first, second])


def test_the_last_token_is_never_taken_from_the_cache():
    kv = cache_of(share_partial=False)
    first = computed(kv, *range(16))
    second = table_of(*range(16))
    assert kv.take_cached(second) == 8
    assert kv.copy_cached(second, StepId(0)) is None
    kv.check_integrity([first, second])


def test_a_whole_cached_prompt_is_copied_for_its_last_token():
    kv = cache_of()
    first = computed(kv, *range(16))
    second = table_of(*range(16))
    kv.take_cached(second)
    hit = kv.copy_cached(second, StepId(0))
    assert hit == PartialHit(first.blocks[1], second.blocks[1], num_tokens=7)


def test_a_block_that_goes_on_differently_is_copied_as_far_as_it_agrees():
    kv = cache_of()
    first = computed(kv, *range(8), 1, 2, 3, 4, 5, 6, 7, 8)
    second = table_of(*range(8), 1, 2, 3, 4, 5, 60, 70, 80, 90)
    assert kv.take_cached(second) == 8
    hit = kv.copy_cached(second, StepId(0))
    assert hit == PartialHit(first.blocks[1], second.blocks[1], num_tokens=5)


def test_the_closest_of_several_siblings_is_copied():
    kv = cache_of()
    tables = [computed(kv, 1, 2, 3, 4, *[tail] * 4) for tail in (50, 60, 70)]
    tables.append(computed(kv, 1, 2, 3, 4, 5, 6, 8, 8))
    tables.append(computed(kv, 1, 2, 3, 4, 90, 90, 90, 90))
    late = table_of(1, 2, 3, 4, 5, 6, 7, 7)
    hit = kv.copy_cached(late, StepId(0))
    assert hit is not None
    assert (hit.source, hit.num_tokens) == (tables[3].blocks[0], 6)


def test_too_little_agreement_is_not_worth_a_copy():
    kv = cache_of()
    computed(kv, 1, 2, 3, 4, 5, 6, 7, 8)
    assert kv.copy_cached(table_of(1, 2, 3, 9, 9, 9, 9, 9), StepId(0)) is None


def test_the_source_of_a_copy_is_held_until_the_step_is_done():
    kv = cache_of(num_blocks=2)
    first = computed(kv, *range(8))
    kv.release(first, after=None)
    second = table_of(*range(8))
    assert kv.copy_cached(second, StepId(5)) is not None
    assert kv.num_free == 0
    kv.step_done(StepId(5))
    assert kv.num_free == 1
    kv.check_integrity([second])


def test_other_roots_share_nothing():
    kv = cache_of()
    computed(kv, *range(16))
    stranger = table_of(*range(17), root=b"other tenant")
    assert kv.take_cached(stranger) == 0
    assert kv.copy_cached(stranger, StepId(0)) is None


def test_a_released_table_is_evicted_from_its_tail():
    kv = cache_of(num_blocks=4)
    first = computed(kv, *range(32))
    kv.release(first, after=None)
    assert kv.grow(table_of(*range(100, 116)), 16)  # takes two blocks
    again = table_of(*range(33))
    assert kv.take_cached(again) == 16


def test_blocks_behind_a_fence_are_not_free():
    kv = cache_of(num_blocks=4)
    table = computed(kv, *range(16))
    kv.release(table, after=StepId(3))
    assert kv.counts() == BlockCounts(total=4, free=2, cached=0, held=2, leaving=2)
    kv.step_done(StepId(3))
    assert kv.counts() == BlockCounts(total=4, free=4, cached=2, held=0, leaving=0)


def test_content_is_coming_until_it_is_published_or_its_maker_is_gone():
    kv = cache_of()
    maker, waiter = table_of(*range(16)), table_of(*range(16), 99)
    kv.grow(maker, 16)
    assert kv.coming.awaits(waiter)
    assert not kv.coming.awaits(table_of(*range(7)))
    kv.publish(maker, 8)
    assert kv.coming.awaits(waiter)  # the second block is still on its way
    kv.release(maker, after=None)
    assert not kv.coming.awaits(waiter)
    assert kv.take_cached(waiter) == 8


def test_a_maker_whom_an_urgent_one_overtook_announces_nothing_any_more():
    kv = cache_of()
    maker, urgent = table_of(*range(25)), table_of(*range(25))
    maker.urgency = 2
    kv.grow(maker, 16)
    assert not kv.coming.awaits(urgent)  # the maker may have to give way to it
    kv.grow(urgent, 24)
    kv.publish(urgent, 24)
    assert kv.take_cached(maker) == 0  # not before its own blocks are done
    kv.check_integrity([maker, urgent])
    kv.release(maker, after=None)
    kv.check_integrity([urgent])


def test_growing_beyond_the_free_blocks_changes_nothing():
    kv = cache_of(num_blocks=2)
    table = table_of(*range(40))
    assert not kv.grow(table, 24)
    assert (table.blocks, kv.num_free) == ((), 2)
    assert not kv.coming.awaits(table_of(*range(40)))


def test_demand_counts_free_cached_blocks_but_not_those_that_others_hold():
    kv = cache_of()
    first = computed(kv, *range(16))
    assert kv.survey.demand(table_of(*range(24))) == 1
    kv.release(first, after=None)
    assert kv.survey.demand(table_of(*range(24))) == 3


def test_content_that_two_sequences_computed_is_cached_once():
    kv = cache_of()
    tables = [table_of(*range(8)), table_of(*range(8))]
    for table in tables:
        kv.grow(table, 8)
        kv.publish(table, 8)
        kv.release(table, after=None)
    assert kv.counts().cached == 1
    kv.check_integrity([])


def test_a_leak_is_told_with_its_arithmetic():
    kv = cache_of()
    computed(kv, *range(8))
    with pytest.raises(
        InvariantBroken, match="block 0: 1 references, 1 in the ledger, 0 in tables"
    ):
        kv.check_integrity([])


def test_output_blocks_extend_the_chain():
    kv = cache_of()
    table = table_of(*range(6))
    kv.grow(table, 6)
    table.tokens.extend([6, 7])
    kv.publish(table, 8)
    late = table_of(*range(9))
    assert kv.take_cached(late) == 8
    assert late.blocks == (BlockId(0),)
