"""Stop strings against a naive oracle, for any way to cut the text into tokens."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from headrace.core.scheduler.events import Output
from headrace.model.detokenizer import Detokenizer
from headrace.server.gateway.choice import Choice
from headrace.server.gateway.stops import StopMatcher
from headrace.types import FinishReason, RequestId

letters = st.one_of(
    st.text(alphabet="ab", max_size=24), st.text(alphabet="ab\u00e9\U0001f600", max_size=24)
)
stop_strings = st.lists(letters.filter(bool), min_size=1, max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, int] | None:
    """The text before the first stop to be complete and the length at which it is, or None."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(len(stop) for stop in complete)
            return text[: end - longest], end
    return None


def cut_up(text: str, cuts: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


@given(letters, stop_strings, st.lists(st.integers(0, 100)))
@example("aaab", ["aab"], [])
@example("abaabab", ["abab"], [1, 2, 3])
def test_a_stop_string_is_found_however_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    shown, stopped = "", False
    for piece in cut_up(text, cuts):
        released = matcher.push(piece)
        shown += released.text
        if released.stopped:
            stopped = True
            break
    expected = naive(text, stops)
    assert stopped == (expected is not None)
    assert shown + matcher.flush() == (text if expected is None else expected[0])


@given(letters, stop_strings, st.lists(st.integers(0, 100)))
def test_only_text_that_may_begin_a_stop_string_is_held_back(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    seen = ""
    for piece in cut_up(text, cuts):
        seen += piece
        if matcher.push(piece).stopped:
            return
        begun = [n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n])]
        assert len(matcher.held) == max(begun)


def split_bytes(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(borders)]


@given(
    letters,
    stop_strings,
    st.lists(st.integers(0, 200)),
    st.lists(st.integers(0, 40)),
    st.integers(0, 5),
    st.booleans(),
)
def test_a_choice_shows_what_the_oracle_shows_for_any_tokens_and_steps(
    text: str,
    stops: list[str],
    cuts: list[int],
    steps: list[int],
    min_tokens: int,
    ends: bool,
) -> None:
    """Tokens cut characters in two; usage ends with the token that completed the stop."""
    pieces = [*split_bytes(text.encode(), cuts), b"<end>"]
    end_id = len(pieces) - 1
    choice = Choice(
        index=0,
        decoder=Detokenizer(pieces),
        stops=StopMatcher(stops),
        stop_token_ids=frozenset({end_id}),
        min_tokens=min_tokens,
    )
    tokens = list(range(end_id)) + ([end_id] if ends else [])
    last = FinishReason.STOP if ends else FinishReason.LENGTH
    shown, finish = "", None
    borders = sorted({0, len(tokens), *(step % (len(tokens) + 1) for step in steps)})
    for begin, end in itertools.pairwise(borders):
        reason = last if end == len(tokens) else None
        delta = choice.push(Output(RequestId("a"), tuple(tokens[begin:end]), reason, 0))
        shown += delta.text
        finish = delta.finish
        if finish is not None:
            break

    decoder = Detokenizer(pieces)
    texts = [decoder.push((token,)) for token in tokens if token != end_id]
    free = "".join(texts[:min_tokens])
    expected = naive("".join(texts[min_tokens:]), stops)
    if expected is None:
        assert (shown, finish) == ("".join(texts), last if tokens else None)
        assert choice.num_tokens == len(tokens)
        return
    assert (shown, finish) == (free + expected[0], FinishReason.STOP)
    lengths = [len("".join(texts[min_tokens:count])) for count in range(len(texts) + 1)]
    completing = next(n for n, length in enumerate(lengths) if length >= expected[1])
    assert choice.num_tokens == completing


def test_the_longest_of_the_stops_that_are_complete_at_once_cuts() -> None:
    assert StopMatcher(["b", "ab"]).push("xab").text == "x"


def test_the_first_stop_to_be_complete_wins_over_one_that_began_earlier() -> None:
    matcher = StopMatcher(["abcd", "bc"])
    assert matcher.push("xabc") == ("xa", True)


def test_text_without_a_first_letter_of_a_stop_passes_untouched() -> None:
    matcher = StopMatcher(["###"])
    assert matcher.push("hello") == ("hello", False)
    assert matcher.held == ""
