"""Choices by examples: log-probabilities travel with their text."""

from __future__ import annotations

from headrace.core.scheduler.events import Output
from headrace.model.detokenizer import Detokenizer
from headrace.server.gateway.choice import Choice, Delta
from headrace.server.gateway.stops import StopMatcher
from headrace.types import FinishReason, RequestId, TokenLogprobs

PIECES = [b"Hel", b"lo", b" ST", b"OP", b" x", b"\xf0\x9f", b"\x98\x80", b"<end>"]
END = 7


def new_choice(*stops: str) -> Choice:
    return Choice(
        index=0,
        decoder=Detokenizer(PIECES),
        stops=StopMatcher(stops) if stops else None,
        stop_token_ids=frozenset({END}),
        min_tokens=0,
    )


def push(choice: Choice, *tokens: int, finish: FinishReason | None = None) -> Delta:
    logprobs = tuple(TokenLogprobs(token, -0.5) for token in tokens)
    return choice.push(Output(RequestId("a"), tokens, finish, 0, logprobs))


def told(delta: Delta) -> list[tuple[int, int]]:
    return [(placed.offset, placed.logprobs.token) for placed in delta.logprobs]


def test_log_probabilities_come_with_their_text_and_its_offset() -> None:
    choice = new_choice()
    assert told(push(choice, 0)) == [(0, 0)]
    assert told(push(choice, 1, 4)) == [(3, 1), (5, 4)]


def test_log_probabilities_of_held_back_text_wait_with_it() -> None:
    choice = new_choice(" STOP")
    assert told(push(choice, 0)) == [(0, 0)]
    held = push(choice, 2)
    assert (held.text, told(held)) == ("", [])
    released = push(choice, 4)
    assert (released.text, told(released)) == (" ST x", [(3, 2), (6, 4)])


def test_log_probabilities_of_cut_text_are_dropped() -> None:
    choice = new_choice(" STOP")
    push(choice, 0)
    push(choice, 2)
    delta = push(choice, 3)
    assert (delta.text, told(delta), delta.finish) == ("", [], FinishReason.STOP)
    assert choice.num_tokens == 3


def test_log_probabilities_of_half_a_character_wait_for_the_other_half() -> None:
    choice = new_choice()
    assert told(push(choice, 5)) == []
    delta = push(choice, 6)
    assert (delta.text, told(delta)) == ("\U0001f600", [(0, 5), (0, 6)])


def test_the_end_token_is_billed_and_not_shown() -> None:
    choice = new_choice()
    delta = push(choice, 0, END, finish=FinishReason.STOP)
    assert (delta.text, told(delta), choice.num_tokens) == ("Hel", [(0, 0)], 2)


def test_an_end_token_that_does_not_end_is_text() -> None:
    choice = new_choice()
    assert push(choice, END, 0).text == "<end>Hel"


def test_half_a_character_at_the_end_is_a_replacement_character() -> None:
    assert push(new_choice(), 0, 5, finish=FinishReason.LENGTH).text == "Hel\ufffd"


def test_held_back_text_is_shown_when_the_generation_ends() -> None:
    choice = new_choice(" STOP")
    delta = push(choice, 0, 2, finish=FinishReason.LENGTH)
    assert (delta.text, told(delta)) == ("Hel ST", [(0, 0), (3, 2)])


def test_a_stop_string_wins_over_the_length_limit() -> None:
    delta = push(new_choice("lo"), 0, 1, finish=FinishReason.LENGTH)
    assert (delta.text, delta.finish) == ("Hel", FinishReason.STOP)


def test_tokens_that_come_together_are_cut_as_if_they_came_one_by_one() -> None:
    together, one_by_one = new_choice(" STOP"), new_choice(" STOP")
    delta = push(together, 0, 1, 2, 3, 4, 4)  # two more than the stop string needed
    singles = [push(one_by_one, token) for token in (0, 1, 2, 3)]
    assert delta.text == "".join(single.text for single in singles) == "Hello"
    assert told(delta) == [entry for single in singles for entry in told(single)]
    assert delta.finish is singles[-1].finish is FinishReason.STOP
    assert together.num_tokens == one_by_one.num_tokens == 4
    ended = new_choice()
    assert push(ended, 0, 1, END, finish=FinishReason.STOP).text == "Hello"
    assert ended.num_tokens == 3
