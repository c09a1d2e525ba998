"""How well a prefix cache is known, by examples: the numbers of its reports, and what came true."""

from __future__ import annotations

import pytest

from headrace.core.router.knowledge import (
    LISTING_PATIENCE,
    MEMORY,
    MIN_PREDICTIONS,
    WINDOW,
    Feed,
    Heard,
    Truth,
)


def test_a_listing_older_than_what_was_heard_does_not_close_a_gap() -> None:
    feed = Feed()
    feed.change(0, 2)
    assert feed.wants_listing(0.0)
    feed.change(0, 3)
    assert feed.listing(0, 2) is Heard.ANEW, "it is nearer to the truth than what is here"
    assert feed.missed == "change 1 was missed"
    assert feed.wants_listing(0.0), "this answer was not enough: asked again at once"
    assert feed.listing(0, 3) is Heard.ANEW
    assert not feed.missed


def test_a_later_life_makes_all_void_and_an_earlier_one_says_nothing() -> None:
    feed = Feed(epoch=7)
    assert feed.change(7, 1) is Heard.ANEW
    assert feed.change(7, 2) is Heard.NEWS
    assert feed.change(8, 1) is Heard.ANEW
    assert not feed.missed, "it tells of its new life from the beginning"
    assert feed.change(7, 3) is Heard.OLD
    assert feed.listing(7, 9) is Heard.OLD
    assert feed.change(9, 3) is Heard.ANEW
    assert feed.missed == "changes 1 to 2 were missed"


def test_a_beat_shows_that_the_last_change_did_not_come() -> None:
    feed = Feed()
    feed.latest(3)
    assert not feed.missed, "nothing was ever heard: it is not known at all"
    feed.listing(0, 3)
    feed.latest(3)
    assert not feed.missed
    feed.latest(5)
    assert feed.missed == "changes 4 to 5 were told of, and did not come"
    assert feed.change(0, 5) is Heard.OLD
    assert feed.listing(0, 4) is Heard.ANEW
    assert feed.missed, "nobody knows what is in change 5"
    assert feed.listing(0, 5) is Heard.ANEW
    assert not feed.missed


def test_a_listing_is_asked_for_again_after_a_while() -> None:
    feed = Feed()
    assert not feed.wants_listing(0.0)
    feed.change(0, 5)
    assert [feed.wants_listing(at) for at in (1.0, 1.1, 1.0 + LISTING_PATIENCE)] == [
        True,
        False,
        True,
    ]


def test_claims_count_for_what_was_found_of_them() -> None:
    truth = Truth()
    for _ in range(MIN_PREDICTIONS - 1):
        truth.note(100, 50, 16, 0.0)
    assert (truth.accuracy, truth.discount) == (None, 1.0), "too few to say"
    truth.note(100, 50, 16, 0.0)
    assert truth.in_doubt
    assert (truth.share, truth.accuracy, truth.discount) == (0.5, 0.5, 0.5)


def test_more_than_was_claimed_is_an_error_but_no_reason_to_doubt() -> None:
    truth = Truth()
    for _ in range(MIN_PREDICTIONS):
        truth.note(100, 400, 16, 0.0)
    assert truth.accuracy == pytest.approx(0.25)
    assert (truth.share, truth.discount) == (1.0, 1.0)


def test_an_error_of_less_than_a_block_is_none() -> None:
    truth = Truth()
    for found in (49, 63, 64, 79):
        truth.note(64, found, 16, 0.0)
    assert truth.accuracy == 1.0
    truth.note(0, 5, 16, 0.0)
    assert len(truth) == 4, "nothing was predicted, and nothing was found: it proves nothing"


def test_doubt_begins_below_90_percent_and_ends_at_95() -> None:
    truth = Truth()
    for _ in range(WINDOW):
        truth.note(1000, 910, 16, 0.0)
    assert not truth.in_doubt
    for _ in range(WINDOW):
        truth.note(1000, 890, 16, 0.0)
    assert truth.in_doubt
    for _ in range(WINDOW):
        truth.note(1000, 940, 16, 0.0)
    assert truth.in_doubt, "not yet"
    for _ in range(WINDOW):
        truth.note(1000, 1000, 16, 0.0)
    assert not truth.in_doubt
    assert len(truth) == WINDOW


def test_old_predictions_say_nothing_of_now() -> None:
    truth = Truth()
    for _ in range(10):
        truth.note(100, 0, 16, 1.0)
    assert truth.discount == 0.0
    truth.forget(1.0 + MEMORY)
    assert len(truth) == 0
    assert truth.discount == 1.0, "who gets nothing for his faults could not mend them"
