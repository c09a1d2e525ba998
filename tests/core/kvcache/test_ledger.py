"""The ledger of blocks: what balances, and what becomes of blocks that do not fit."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.kvcache.blocks import BlockPool
from headrace.core.kvcache.ledger import BlockLedger
from headrace.testing.eviction import OldestFirst
from headrace.types import BlockId

NUM_BLOCKS = 6


def books() -> tuple[BlockPool, BlockLedger]:
    pool = BlockPool(NUM_BLOCKS, evict=lambda block: None, cached=OldestFirst())
    return pool, BlockLedger(pool)


def test_a_block_is_held_until_its_last_holder_gives_it_back():
    pool, ledger = books()
    blocks = ledger.take(2)
    ledger.share(blocks[:1])
    assert (ledger.num_held, ledger.num_entries) == (2, 3)
    ledger.give_back(blocks, kept=())
    assert (pool.num_free, ledger.num_held, ledger.num_entries) == (NUM_BLOCKS - 1, 1, 1)
    assert ledger.is_balanced


def test_a_block_that_the_pool_alone_handed_out_unbalances_the_books():
    pool, ledger = books()
    pool.take(1)
    assert not ledger.is_balanced


def test_giving_back_what_was_not_taken_is_told_and_breaks_nothing():
    pool, ledger = books()
    (block,) = ledger.take(1)
    ledger.give_back((block,), kept=())
    ledger.give_back((block,), kept=())
    assert not ledger.is_balanced
    ledger.give_back((block,), kept=())
    (misfit,) = ledger.audit({})
    assert misfit == (block, False)
    assert ledger.is_balanced
    assert pool.num_free == NUM_BLOCKS - 1


@pytest.mark.parametrize("how", ["forgotten", "taken behind our back", "free although in use"])
def test_a_block_that_does_not_fit_is_never_handed_out_again(how: str):
    pool, ledger = books()
    kept, odd = ledger.take(2)
    held = Counter({kept: 1})
    if how == "taken behind our back":
        ledger.give_back((odd,), kept=())
        pool.take(1)
    elif how == "free although in use":
        pool.give_back((odd,), kept=())
        held[odd] = 1
    misfits = ledger.audit(held)
    assert misfits == [(odd, how == "free although in use")]
    assert ledger.num_quarantined == 1
    assert ledger.is_balanced
    ledger.check_integrity(held)
    handed_out = ledger.take(pool.num_free)
    assert len(handed_out) == NUM_BLOCKS - 2
    assert not {kept, odd} & set(handed_out)


def test_a_quarantined_block_stays_with_its_holder_and_then_with_nobody():
    pool, ledger = books()
    (block,) = ledger.take(1)
    pool.share((block,))  # a reference that nobody answers for
    ledger.audit({block: 1})
    assert (ledger.num_held, ledger.num_quarantined) == (1, 1)
    ledger.give_back((block,), kept=(block,))
    assert (ledger.num_held, ledger.num_quarantined, pool.num_free) == (0, 1, NUM_BLOCKS - 1)
    assert ledger.is_balanced
    assert ledger.audit({}) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "share", "drop"]), st.integers(0, 50)),
        max_size=60,
    ),
    st.lists(st.integers(0, NUM_BLOCKS - 1), max_size=4),
)
def test_whatever_happens_the_books_balance_and_an_audit_makes_them(
    steps: list[tuple[str, int]], harm: list[int]
):
    pool, ledger = books()
    held: Counter[BlockId] = Counter()
    for what, number in steps:
        holders = sorted(held.elements())
        if what == "take":
            held.update(ledger.take(min(number % 3, pool.num_free)))
        elif holders:
            first = number % len(holders)
            blocks = sorted({*holders[first : first + 3]})
            if what == "share":
                ledger.share(blocks)
                held.update(blocks)
            else:
                ledger.give_back(blocks, kept=())
                held -= Counter(blocks)
        assert ledger.is_balanced
        ledger.check_integrity(held)
    for block in map(BlockId, harm):
        if pool.references(block):
            pool.give_back((block,), kept=())
        else:
            pool.withdraw(block)
    harmed = {misfit.block for misfit in ledger.audit(held)}
    assert harmed <= set(harm)
    assert ledger.is_balanced
    ledger.check_integrity(held)
    free = set(pool.take(pool.num_free))
    assert not free & {*harmed, *held}
