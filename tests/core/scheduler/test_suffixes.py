"""SuffixIndex against a search of the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.scheduler.suffixes import (
    MAX_CANDIDATES,
    MAX_MATCH,
    MIN_MATCH,
    Match,
    SuffixIndex,
)


def places(tokens: list[int]) -> list[Match]:
    """Return every place where the text's last tokens were before, the latest first."""
    found = []
    for position in range(len(tokens) - 1, MIN_MATCH - 1, -1):
        length = 0
        while length < min(position, MAX_MATCH):
            if tokens[position - 1 - length] != tokens[len(tokens) - 1 - length]:
                break
            length += 1
        if length >= MIN_MATCH:
            found.append(Match(position, length))
    return found


texts = st.integers(1, 4).flatmap(lambda top: st.lists(st.integers(0, top), max_size=60))


@given(text=texts, pieces=st.lists(st.integers(1, 9), max_size=20))
def test_the_longest_match_is_the_one_that_a_search_finds(text: list[int], pieces: list[int]):
    tokens: list[int] = []
    index = SuffixIndex(tokens)
    for size in [*pieces, len(text)]:
        tokens += text[len(tokens) : len(tokens) + size]
        index.enter(len(tokens))
        assert index.num_missing <= 0
        candidates = places(tokens)[:MAX_CANDIDATES]
        expected = max(candidates, key=lambda match: match.length, default=None)
        assert index.longest() == expected


@given(text=texts, limits=st.lists(st.integers(0, 7), max_size=30))
def test_an_index_that_is_behind_finds_true_matches_all_the_same(
    text: list[int], limits: list[int]
):
    index = SuffixIndex(text)
    for limit in limits:
        missing = max(index.num_missing, 0)
        assert index.enter(limit) == min(limit, missing)
        match = index.longest()
        assert match is None or any(
            match.next == place.next and match.length == place.length for place in places(text)
        )


def test_what_followed_is_repeated_where_it_runs_into_the_end():
    tokens = [9, 1, 2, 3, 4, 1, 2]
    index = SuffixIndex(tokens)
    index.enter(100)
    match = index.longest()
    assert match == Match(3, 2)
    assert index.continuation(match, 3) == (3, 4, 1)
    assert index.continuation(match, 7) == (3, 4, 1, 2, 3, 4, 1)


def test_of_equal_matches_the_latest_counts():
    tokens = [1, 2, 7, 1, 2, 8, 1, 2]
    index = SuffixIndex(tokens)
    index.enter(100)
    match = index.longest()
    assert match is not None
    assert index.continuation(match, 1) == (8,)


def test_a_long_text_enters_in_pieces():
    tokens = list(range(5000)) * 2
    index = SuffixIndex(tokens)
    entered = 0
    while index.num_missing > 0:
        taken = index.enter(512)
        assert 0 < taken <= 512
        entered += taken
    assert entered == len(tokens) - 1
    assert index.longest() == Match(5000, MAX_MATCH)
