"""BlockPool: the order in which blocks are handed out. Against a model: tests/property."""

from __future__ import annotations

import pytest

from headrace.core.kvcache.blocks import BlockPool
from headrace.errors import InvariantBroken
from headrace.testing.eviction import OldestFirst
from headrace.types import BlockId


def pool_of(num_blocks: int) -> tuple[BlockPool, list[BlockId]]:
    evicted: list[BlockId] = []
    return BlockPool(num_blocks, evict=evicted.append, cached=OldestFirst()), evicted


def test_blank_blocks_come_first_then_untouched_then_the_oldest_cached():
    pool, evicted = pool_of(5)
    for _ in range(4):
        pool.take(1)
    pool.give_back([BlockId(2)], kept=[BlockId(2)])
    pool.give_back([BlockId(1)], kept=[BlockId(1)])
    pool.give_back([BlockId(3)], kept=())
    assert pool.take(4) == [3, 4, 2, 1]
    assert evicted == [2, 1]


def test_a_shared_block_leaves_the_eviction_order_and_returns_as_the_newest():
    pool, _ = pool_of(3)
    for block in pool.take(3):
        pool.give_back([block], kept=[block])
    pool.share([BlockId(0)])
    assert pool.cached() == [1, 2]
    pool.give_back([BlockId(0)], kept=[BlockId(0)])
    assert pool.cached() == [1, 2, 0]


def test_a_block_is_free_only_when_its_last_owner_gave_it_back():
    pool, _ = pool_of(1)
    (block,) = pool.take(1)
    pool.share([block])
    pool.give_back([block], kept=())
    assert pool.num_free == 0
    pool.give_back([block], kept=())
    assert pool.num_free == 1


def test_giving_back_too_often_is_told_and_changes_nothing():
    pool, _ = pool_of(1)
    (block,) = pool.take(1)
    pool.give_back([block], kept=())
    assert pool.give_back([block], kept=()) == [block]
    assert pool.num_free == 1


def test_an_empty_pool_and_a_blank_block_are_refused():
    pool, _ = pool_of(1)
    (block,) = pool.take(1)
    with pytest.raises(InvariantBroken, match="all 1 are referenced"):
        pool.take(1)
    pool.give_back([block], kept=())
    with pytest.raises(InvariantBroken, match="holds nothing"):
        pool.share([block])
