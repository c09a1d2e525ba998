"""Survey: what a table would find, or holds together with others; against a search end to end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.kvcache.cache import KVCache
from headrace.core.kvcache.table import BlockTable

SIZE = 4


def table_of(*tokens: int) -> BlockTable:
    return BlockTable(list(tokens), SIZE, b"")


def held(kv: KVCache, *tokens: int) -> BlockTable:
    """A sequence that holds all of its tokens, published."""
    table = table_of(*tokens)
    kv.take_cached(table)
    assert kv.grow(table, len(tokens))
    kv.publish(table, len(tokens))
    return table


def named(table: BlockTable) -> BlockTable:
    """The same, with the digests that come with a prompt."""
    for index in range(len(table.tokens) // SIZE):
        table.digest(index)
    return table


def test_a_block_that_others_hold_costs_nothing_and_a_free_cached_one_does():
    kv = KVCache(num_blocks=32, block_size=SIZE)
    first = held(kv, *range(12))
    newcomer = table_of(*range(12), 50, 51)
    assert kv.survey.demand(newcomer) == 4 - 3
    kv.release(first, after=None)
    assert kv.survey.demand(newcomer) == 4


def test_a_block_that_is_held_for_itself_does_not_stand_for_those_before_it():
    kv = KVCache(num_blocks=32, block_size=SIZE)
    first = held(kv, *range(12))
    middle = first.blocks[1]
    kv.release(first, after=None)
    kv.ledger.share([middle])  # the source of a copy, say
    assert kv.survey.demand(named(table_of(*range(12), 50))) == 4


def test_the_last_token_needs_its_own_block():
    kv = KVCache(num_blocks=32, block_size=SIZE)
    held(kv, *range(12))
    assert kv.survey.demand(table_of(*range(12))) == 1


def test_held_and_free_cached_blocks_both_count_as_cached():
    kv = KVCache(num_blocks=32, block_size=SIZE)
    first = held(kv, *range(12))
    newcomer = named(table_of(*range(16)))
    assert kv.survey.num_cached(newcomer) == 3
    kv.release(first, after=None)
    assert kv.survey.num_cached(newcomer) == 3


def test_only_leading_blocks_that_several_hold_are_shared():
    kv = KVCache(num_blocks=32, block_size=SIZE)
    first = held(kv, *range(8), 1, 2, 3, 4)
    assert kv.survey.num_shared(first) == 0
    second = held(kv, *range(8), 5, 6, 7, 8)
    assert kv.survey.num_shared(first) == kv.survey.num_shared(second) == 2
    kv.release(second, after=None)
    assert kv.survey.num_shared(first) == 0


@given(
    prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24), min_size=1, max_size=6),
    asked=st.lists(st.integers(0, 1), min_size=1, max_size=24),
    released=st.integers(0, 5),
)
def test_bisection_finds_what_a_search_finds(
    prompts: list[list[int]], asked: list[int], released: int
):
    kv = KVCache(num_blocks=256, block_size=SIZE)
    tables = [held(kv, *prompt) for prompt in prompts]
    for table in tables[:released]:
        kv.release(table, after=None)
    newcomer = named(table_of(*asked))
    count = 0
    while count < newcomer.num_sharable and kv.index.find(newcomer.digest(count)) is not None:
        count += 1
    assert kv.survey.num_cached(newcomer) == count
    for table in tables[released:]:
        others = [other for other in tables[released:] if other is not table]
        shared = {block for other in others for block in other.blocks}
        leading = [block in shared for block in table.blocks]
        assert kv.survey.num_shared(table) == (
            leading.index(False) if False in leading else len(leading)
        )
