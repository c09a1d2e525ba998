"""A foreign server's blocks in our digests."""

from __future__ import annotations

import pytest

from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.foreign_blocks import (
    AllCleared,
    BlocksRemoved,
    BlocksStored,
    ForeignBlocks,
    foreign_root,
)
from headrace.core.router.requests import keys_of
from headrace.errors import ProtocolError

UNIT = 4
PROMPT = tuple(range(100, 116))  # 4 units


def keys(tokens: tuple[int, ...], salt: str = "", unit: int = UNIT) -> set[int]:
    return set(keys_of(prompt_chain(foreign_root(unit, salt), tokens, unit)))


def store(
    tokens: tuple[int, ...], names: str, parent: str | None = None, size: int = UNIT, salt: str = ""
) -> BlocksStored:
    return BlocksStored(
        names=[name.encode() for name in names],
        parent=parent.encode() if parent else None,
        tokens=tokens,
        block_size=size,
        salt=salt,
    )


def remove(names: str) -> BlocksRemoved:
    return BlocksRemoved([name.encode() for name in names])


def test_blocks_have_the_digests_that_the_prompt_has() -> None:
    blocks = ForeignBlocks(UNIT)
    delta = blocks.apply([store(PROMPT[:8], "ab"), store(PROMPT[8:], "cd", parent="b")])
    assert set(delta.stored) == set(blocks.held) == keys(PROMPT)
    assert (delta.removed, delta.num_stored, delta.num_orphans) == ((), 4, 0)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_unit_of_several_blocks_is_there_with_its_last(size: int) -> None:
    blocks = ForeignBlocks(UNIT)
    names = "abcdefghijklmnop"[: 16 // size]
    whole = len(names) - 1
    short = whole * size
    blocks.apply([store(PROMPT[:short], names[:whole], size=size)])
    assert set(blocks.held) == keys(PROMPT[:short])
    blocks.apply([store(PROMPT[short:], names[whole:], parent=names[whole - 1], size=size)])
    assert set(blocks.held) == keys(PROMPT)


def test_blocks_larger_than_the_unit_are_refused_with_the_option_to_say() -> None:
    with pytest.raises(ProtocolError, match="block-size=8 behind its URL"):
        ForeignBlocks(UNIT).apply([store(PROMPT, "ab", size=8)])


def test_copies_are_counted() -> None:
    blocks = ForeignBlocks(UNIT)
    blocks.apply([store(PROMPT, "abcd"), store(PROMPT, "abcd")])
    assert blocks.apply([remove("abcd")]).removed == ()
    assert set(blocks.apply([remove("dc")]).removed) == keys(PROMPT) - keys(PROMPT[:8])
    assert set(blocks.held) == keys(PROMPT[:8])


def test_what_comes_and_goes_in_one_batch_is_no_change() -> None:
    blocks = ForeignBlocks(UNIT)
    delta = blocks.apply([store(PROMPT, "abcd"), remove("d")])
    assert set(delta.stored) == keys(PROMPT[:12])
    assert delta.removed == ()
    again = blocks.apply([remove("c"), store(PROMPT[8:12], "c", parent="b")])
    assert (again.stored, again.removed) == ((), ())


def test_behind_a_block_that_was_never_heard_of_there_are_orphans() -> None:
    blocks = ForeignBlocks(UNIT)
    delta = blocks.apply([store(PROMPT[8:], "cd", parent="b"), remove("d")])
    assert (delta.stored, delta.removed, delta.num_orphans, len(blocks)) == ((), (), 2, 0)


def test_a_salt_makes_other_blocks() -> None:
    blocks = ForeignBlocks(UNIT)
    blocks.apply([store(PROMPT, "abcd", salt="mine"), store(PROMPT[:4], "e")])
    assert set(blocks.held) == keys(PROMPT, "mine") | keys(PROMPT[:4])


def test_after_a_doubt_a_block_proves_those_before_it() -> None:
    blocks = ForeignBlocks(UNIT)
    blocks.apply([store(PROMPT[:12], "abc")])
    blocks.doubt()
    assert blocks.held == ()
    delta = blocks.apply([store((7, 8, 9, 9), "x", parent="b")])
    assert set(delta.stored) == keys((*PROMPT[:8], 7, 8, 9, 9))
    assert delta.num_stored == 1
    assert blocks.apply([remove("c")]).removed == ()  # it was in doubt anyway
    blocks.check_integrity()


def test_a_cleared_cache_is_empty_and_removals_of_unknown_groups_are_none_of_ours() -> None:
    blocks = ForeignBlocks(UNIT)
    blocks.apply([store(PROMPT, "abcd"), BlocksRemoved([b"a"], group=1)])
    assert len(blocks.held) == 4
    assert set(blocks.apply([AllCleared()]).removed) == keys(PROMPT)
    assert len(blocks) == 0


def test_memory_is_bounded_and_what_is_in_doubt_goes_first() -> None:
    blocks = ForeignBlocks(UNIT, max_blocks=4)
    blocks.apply([store(PROMPT[:12], "abc")])
    blocks.doubt()
    delta = blocks.apply([store(tuple(range(24)), "uvwxyz")])
    assert (delta.num_stored, delta.num_orphans, len(blocks)) == (4, 2, 4)
    blocks.check_integrity()
