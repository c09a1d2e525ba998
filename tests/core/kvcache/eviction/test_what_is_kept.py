"""What is kept for somebody: for who waits, for who asked, and within quotas."""

from __future__ import annotations

import pytest
from caching import SIZE, Ask, Cache, chain_of, table_of

from headrace.core.kvcache.eviction.config import EvictionConfig
from headrace.core.kvcache.eviction.marks import Owner
from headrace.core.kvcache.eviction.wanted import SLICE, Expectations
from headrace.errors import InvariantBroken


def filled(*, lookahead: int = 65536, order: str = "foresight") -> Cache:
    """A cache of six blocks with three prompts of two."""
    cache = Cache(6, EvictionConfig(order=order, lookahead_blocks=lookahead))
    for at, first in enumerate((10, 20, 30)):
        cache.serve(Ask(float(at), (first, first + 1)))
    return cache


def test_what_a_waiting_request_will_hit_goes_last():
    cache = filled()
    cache.kv.evictor.expect(table_of(Ask(3.0, (10, 11, 12))), rank=0)
    cache.serve(Ask(3.0, (40, 41, 42, 43)))
    assert sorted(cache.lost) == [20, 21, 30, 31]


def test_what_two_requests_that_came_at_once_will_hit_goes_last_too():
    cache = filled()
    for rank in (0, 1):
        cache.kv.evictor.expect(table_of(Ask(3.0, (10, 11, 12))), rank=rank)
    cache.serve(Ask(3.0, (40, 41, 42, 43)))
    assert sorted(cache.lost) == [20, 21, 30, 31]


@pytest.mark.parametrize(("lookahead", "order"), [(0, "foresight"), (65536, "lru")])
def test_the_queue_is_not_looked_at_if_that_is_switched_off(lookahead: int, order: str):
    cache = filled(lookahead=lookahead, order=order)
    cache.kv.evictor.expect(table_of(Ask(3.0, (10, 11, 12))), rank=0)
    cache.serve(Ask(3.0, (40, 41, 42, 43)))
    assert sorted(cache.lost) == [10, 11, 20, 21]


def test_of_what_is_wanted_the_latest_goes_first_and_its_tail_before_its_beginning():
    cache = filled()
    for rank, first in enumerate((20, 30, 10)):
        cache.kv.evictor.expect(table_of(Ask(3.0, (first, first + 1))), rank=rank)
    cache.kv.evictor.advance(3.0)
    names = [
        next(n for n in (10, 11, 20, 21, 30, 31) if cache.kv.index.find(chain_of((n,))[0]) == block)
        for block in list(cache.kv.evictor.victims())[:6]
    ]
    assert names == [11, 10, 31, 30, 21, 20]


def test_what_nobody_waits_for_any_more_is_as_any_other():
    cache = filled()
    table = table_of(Ask(3.0, (10, 11, 12)))
    cache.kv.evictor.expect(table, rank=0)
    cache.kv.evictor.advance(3.0)
    cache.kv.evictor.forget(table)
    cache.kv.evictor.advance(4.0)
    cache.serve(Ask(5.0, (40, 41, 42, 43)))
    assert sorted(cache.lost) == [20, 21, 30, 31]  # touched by being wanted: the newest now
    cache.serve(Ask(6.0, (50, 51)))
    assert sorted(cache.lost[4:]) == [10, 11]


def test_who_no_longer_waits_leaves_a_chains_tail_in_front_of_its_beginning():
    cache = Cache(4, EvictionConfig())
    table = table_of(Ask(0.0, (10, 11, 12)))
    cache.serve(Ask(0.0, (10, 11, 12)))
    before = list(cache.kv.evictor.victims())[:3]
    for _ in range(2):
        cache.kv.evictor.expect(table, rank=0)
        cache.kv.evictor.advance(1.0)
        cache.kv.evictor.forget(table)
        cache.kv.evictor.advance(2.0)
        assert list(cache.kv.evictor.victims())[:3] == before


def test_content_that_is_computed_while_it_is_wanted_is_kept():
    cache = filled()
    cache.kv.evictor.expect(table_of(Ask(3.0, (70, 71, 72))), rank=0)
    cache.serve(Ask(3.0, (70, 71)))
    cache.serve(Ask(4.0, (40, 41, 42, 43)))
    assert cache.holds(70)
    assert cache.holds(71)


def test_a_long_prompt_is_taken_in_and_forgotten_by_slices():
    expectations = Expectations(1 << 20)
    names = tuple(range(3 * SLICE))
    table = table_of(Ask(0.0, (*names, 0)))
    expectations.expect(table, 0)
    for _ in range(3):
        wanted, _ = expectations.work()
        assert len(wanted) == SLICE
    assert len(expectations.work()[0]) <= 1
    expectations.forget(table)
    gone = [expectations.work()[1] for _ in range(4)]
    assert [len(some) for some in gone[:3]] == [SLICE] * 3
    assert expectations._num_known == 0
    assert not expectations._ranks


def test_only_so_much_of_the_queue_is_kept_in_mind():
    expectations = Expectations(10)
    tables = [table_of(Ask(0.0, tuple(range(10 * n, 10 * n + 6)))) for n in range(4)]
    for rank, table in enumerate(tables):
        expectations.expect(table, rank)
    for _ in range(5):
        expectations.work()
    assert expectations._num_known == 10
    expectations.forget(tables[0])
    for _ in range(5):
        expectations.work()
    assert expectations._num_known == 10
    assert expectations.rank(tables[0].chain[0]) is None
    assert expectations.rank(tables[1].chain[5]) == 1


def test_pinned_content_goes_after_all_others_and_its_time_ends():
    cache = Cache(6, EvictionConfig(pinned_share=1.0))
    keep = Owner(retention=100.0, num_prompt_blocks=2)
    cache.serve(Ask(0.0, (10, 11), keep))
    for at in range(1, 20):
        cache.serve(Ask(float(at), (100 + 4 * at, 101 + 4 * at, 102 + 4 * at)))
    assert cache.holds(11)
    assert cache.kv.evictor.figures().pinned == 2
    cache.serve(Ask(101.0, (1, 2, 3)))
    assert cache.kv.evictor.figures().pinned == 0
    cache.serve(Ask(102.0, (4, 5, 6, 7, 8, 9)))
    assert not cache.holds(10)


def test_each_use_by_its_owner_begins_a_pins_time_anew():
    cache = Cache(6, EvictionConfig(pinned_share=1.0))
    keep = Owner(retention=10.0, num_prompt_blocks=2)
    for at in (0.0, 8.0):
        cache.serve(Ask(at, (10, 11), keep))
    cache.kv.evictor.advance(17.0)
    assert cache.kv.evictor.figures().pinned == 2
    cache.kv.evictor.advance(18.0)
    assert cache.kv.evictor.figures().pinned == 0


def test_pins_are_soft():
    cache = Cache(4, EvictionConfig(pinned_share=1.0))
    cache.serve(Ask(0.0, (10, 11), Owner(retention=100.0, num_prompt_blocks=2)))
    cache.serve(Ask(1.0, (20, 21, 22, 23)))
    assert sorted(cache.lost) == [10, 11]


def test_only_the_prompts_blocks_are_pinned():
    cache = Cache(6, EvictionConfig(pinned_share=1.0))
    cache.serve(Ask(0.0, (10, 11, 12), Owner(retention=100.0, num_prompt_blocks=2)))
    assert cache.kv.evictor.figures().pinned == 2


@pytest.mark.parametrize(("share", "pinned"), [(0.0, 0), (0.25, 2), (1.0, 6)])
def test_a_tenant_pins_no_more_than_its_share(share: float, pinned: int):
    cache = Cache(8, EvictionConfig(pinned_share=share))
    keep = Owner(tenant="red", retention=100.0, num_prompt_blocks=8)
    cache.serve(Ask(0.0, (10, 11, 12, 13, 14, 15), keep))
    assert cache.kv.evictor.figures().pinned == pinned


@pytest.mark.parametrize(("share", "kept"), [(1.0, False), (0.5, True)])
def test_a_tenant_over_its_quota_loses_its_own_content_first(share: float, kept: bool):
    cache = Cache(8, EvictionConfig(order="lru", tenant_share=share))
    cache.serve(Ask(0.0, (10, 11), Owner(tenant="small")))
    for at in range(1, 9):
        names = (100 * at, 100 * at + 1)
        cache.serve(Ask(float(at), names, Owner(tenant="large")))
    assert cache.holds(11) is kept


def test_a_tenant_over_its_quota_may_use_what_nobody_wants():
    cache = Cache(8, EvictionConfig(tenant_share=0.25))
    cache.serve(Ask(0.0, tuple(range(10, 18)), Owner(tenant="large")))
    assert cache.lost == []
    assert all(cache.holds(name) for name in range(10, 18))


def test_evicted_content_that_is_computed_again_is_regretted():
    cache = Cache(4, EvictionConfig(order="lru"))
    cache.serve(Ask(0.0, (10, 11)))
    cache.serve(Ask(1.0, (20, 21, 22, 23)))
    cache.serve(Ask(2.0, (10, 11)))
    figures = cache.kv.evictor.figures()
    assert (figures.evicted, figures.regretted) == (4, 2)


def test_an_order_is_not_exchanged_while_it_holds_blocks():
    cache = filled()
    with pytest.raises(InvariantBroken, match="holds blocks"):
        cache.kv.evictor.follow(cache.kv.evictor._levels.plain)


def test_turns_are_counted_by_session_and_without_one_by_what_is_continued():
    cache = Cache(64)
    turns = []
    for at, names in enumerate(((1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 9))):
        table = table_of(Ask(float(at), names))
        cache.kv.take_cached(table)
        cache.kv.grow(table, len(names) * SIZE)
        cache.kv.publish(table, len(names) * SIZE)
        cache.kv.release(table, after=None)
        assert table.visit is not None
        turns.append(table.visit.turn)
    assert turns == [1, 2, 3, 1]  # the last one only shares the beginning
    for expected in (1, 2, 3):
        table = table_of(Ask(9.0, (50 + expected,), Owner(session="s")))
        cache.kv.take_cached(table)
        assert table.visit is not None
        assert table.visit.turn == expected
