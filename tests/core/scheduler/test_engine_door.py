"""The door: who is told at once that it cannot be, with what words, and what stays behind."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from playing import rehearsal, request_of

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.door import LEAST_WAIT, SURE_AFTER
from headrace.testing.engines import simulated_engine
from headrace.types import FinishReason, RequestId

if TYPE_CHECKING:
    from headrace.testing.rehearsal import Rehearsal


def experienced(**settings: object) -> Rehearsal:
    """An engine that knows its speed, with a second of prompts before anybody who comes at 5 s."""
    engine = rehearsal(SchedulerConfig(**settings))  # type: ignore[arg-type]
    load = [(0.0, request_of("first", 64, 4 * SURE_AFTER))]
    load += [(5.0, request_of(f"r{i}", 500, 4, first_token_by=5.5 + i)) for i in range(4)]
    engine.play(load, until=5.01)
    return engine


def test_what_would_come_too_late_is_refused_with_the_predicted_time_and_when_to_ask_again():
    engine = experienced()
    engine.play([(5.02, request_of("late", 64, 4, first_token_by=5.021))], until=5.03)
    reject = engine.stories[RequestId("late")].reject
    assert reject is not None
    assert reject.code == "deadline_infeasible"
    assert "would come in about 0." in reject.reason
    assert "is wanted in 0.00 s" in reject.reason
    assert reject.retry_after is not None
    assert reject.retry_after >= LEAST_WAIT


def test_a_deadline_alone_refuses_nobody():
    engine = experienced()
    engine.play([(5.02, request_of("late", 64, 4, deadline=5.03))])
    story = engine.stories[RequestId("late")]
    assert (story.reject, story.finish) == (None, FinishReason.DEADLINE)


def test_what_can_be_in_time_and_what_asks_for_nothing_comes_in():
    engine = experienced()
    engine.play(
        [
            (5.02, request_of("asks", 64, 4, first_token_by=60.0)),
            (5.02, request_of("does not", 64, 4)),
        ]
    )
    assert all(story.finish for story in engine.stories.values())


def test_switched_off_nobody_is_refused():
    engine = experienced(refuse_late=False)
    engine.play([(5.02, request_of("late", 64, 4, first_token_by=5.021))])
    assert engine.stories[RequestId("late")].finish


def test_who_is_refused_leaves_no_account_behind():
    engine = experienced()
    load = [
        (5.02, request_of(f"late{i}", 64, 4, tenant=f"t{i}", first_token_by=5.0201))
        for i in range(50)
    ]
    engine.play(load, until=5.021)
    assert all(engine.stories[request.id].reject for _, request in load)
    assert len(engine.core._door._ledger._accounts) == 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("weight", 0.0, "weight is 0.0"),
        ("weight", float("inf"), "weight is inf"),
        ("weight", float("nan"), "weight is nan"),
        ("itl", 0.0, "itl is 0.0 s"),
        ("itl", float("nan"), "itl is nan s"),
        ("first_token_by", float("nan"), "first_token_by is nan"),
        ("deadline", float("inf"), "deadline is inf"),
    ],
)
def test_numbers_that_would_break_the_order_are_refused(field: str, value: float, words: str):
    engine = simulated_engine()
    bad = replace(request_of("bad"), **{field: value})
    engine.submit(bad)
    engine.submit(request_of("good"))
    engine.run_until_idle()
    assert engine.rejects[bad.id].code == "invalid_request"
    assert words in engine.rejects[bad.id].reason
    assert engine.finishes.keys() == {"good"}
