"""Records and explanations: found by any id, bounded, and every millisecond in one span."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.balancer.policy import Choice, Score
from headrace.monitoring.explain import explain
from headrace.monitoring.records import Attempt, Records, RequestRecord, request_row
from headrace.types import EngineTiming, ReplicaId, RequestId

R0, R1 = ReplicaId("r0"), ReplicaId("r1")
WORDS = ("receive", "prepare", "queue", "engine queue", "prefill", "decode", "move", "finish")


def record(number: int = 1, *, alias: str = "", arrived_at: float = 100.0) -> RequestRecord:
    return RequestRecord(
        id=f"{number:032x}",
        alias=alias,
        unix=1.5e9,
        tenant="default",
        arrived_at=arrived_at,
        begun_at=arrived_at + 0.001,
        prepared_at=arrived_at + 0.003,
        prompt_tokens=640,
    )


def attempt(replica: ReplicaId, at: float, **fields: object) -> Attempt:
    choice = Choice(replica, "nearest", (Score(R0, 0.5, 512), Score(R1, 0.7, 0)), 0.45)
    made = Attempt(choice, "predicted_ttft", dispatched_at=at, prompt_tokens=640)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def names(of: RequestRecord, now: float = 200.0) -> list[str]:
    return [span.name for span in explain(of, now).spans]


def test_a_record_is_found_by_its_id_its_clients_and_its_completions():
    records = Records()
    first = record(1, alias="mine")
    records.begin(first)
    for known in (first.id, "mine", f"chatcmpl-{first.id}", f"cmpl-{first.id}", f"{first.id}#1~2"):
        assert records.find(known) is first
    assert records.find("other") is None
    second = record(2, alias="mine")
    records.begin(second)
    assert records.find("mine") is second, "an id that a client uses twice is the latest's"
    forged = record(3, alias=first.id)
    records.begin(forged)
    assert records.find(first.id) is first, "no client can take another's id"


@given(st.integers(0, 40), st.integers(1, 10), st.data())
def test_finished_records_are_bounded_and_the_oldest_go(
    number: int, bound: int, data: st.DataObject
):
    records = Records(max_finished=bound)
    all_of_them = [record(n, alias=f"a{n % 3}") for n in range(number)]
    for each in all_of_them:
        records.begin(each)
    ended = data.draw(st.permutations(all_of_them))
    for each in ended:
        records.end(each)
    kept = ended[-bound:]
    assert len(records) == len(kept)
    assert list(records.newest(100)) == kept[::-1]
    assert [records.find(each.id) for each in kept] == kept
    assert all(records.find(each.id) is None for each in ended[:-bound])


def test_requests_under_way_come_first():
    records = Records()
    one, two, three = (record(n) for n in range(3))
    for each in (one, two, three):
        records.begin(each)
    records.end(two)
    assert list(records.newest(10)) == [three, one, two]
    assert list(records.newest(2)) == [three, one]
    assert request_row(one, 103.0).seconds == 3.0


def test_a_plain_request_is_told_in_full():
    told = record()
    told.choices[RequestId("q#0")] = [
        attempt(
            R0,
            100.01,
            timing=EngineTiming(waited=0.02, prefill=0.1, chunks=3),
            first_at=100.14,
            last_at=101.0,
            cached_tokens=512,
        )
    ]
    told.state, told.ttft, told.done_at = "stop", 0.14, 101.001
    explanation = explain(told, 200.0)
    spans = {span.name: span for span in explanation.spans}
    assert names(told) == [word for word in WORDS if word != "move"]
    assert spans["prefill"].seconds == pytest.approx(0.1)
    assert spans["prefill"].note == "3 chunks, 512 of 640 tokens cached"
    assert spans["engine queue"].seconds == pytest.approx(0.03)
    assert spans["decode"].seconds == pytest.approx(0.86)
    (placement,) = explanation.placements
    assert (placement.predicted_ttft, placement.actual_ttft) == (0.45, pytest.approx(0.13))
    assert [row.cached_tokens for row in placement.candidates] == [512, 0]


def test_a_migration_shows_both_stays_and_the_way_between():
    told = record()
    told.choices[RequestId("q#0")] = [
        attempt(R0, 100.01, first_at=100.1, last_at=100.5, given_up_at=103.5, reason="silent"),
        attempt(R1, 103.6, first_at=103.9, last_at=105.0),
    ]
    told.done_at = 105.0
    spans = explain(told, 200.0).spans
    assert [span.name for span in spans[2:]] == [
        "queue", "prefill", "decode", "move", "queue", "prefill", "decode",
    ]  # fmt: skip
    assert (spans[5].seconds, spans[5].note, spans[5].replica) == (3.0, "silent", "r0")
    assert told.migrations == 1
    assert told.replicas == [R0, R1]


def test_a_request_that_found_no_place_waited_in_the_queue():
    told = record()
    told.state, told.done_at = "not_ready", 130.0
    assert names(told) == ["receive", "prepare", "queue"]
    assert "not_ready" in explain(told, 200.0).spans[-1].note


def test_a_request_under_way_is_told_up_to_now():
    told = record()
    assert names(told) == ["receive", "prepare", "queue"]
    told.choices[RequestId("q#0")] = [attempt(R0, 100.01)]
    assert names(told)[-1] == "engine queue"
    told.choices[RequestId("q#0")] = [attempt(R0, 100.01, first_at=100.2)]
    assert names(told)[-1] == "decode"
    assert explain(told, 200.0).seconds == 100.0


def test_of_several_choices_the_last_to_end_is_told_and_all_are_placed():
    told = record()
    told.choices[RequestId("q#0")] = [attempt(R0, 100.01, first_at=100.2, last_at=100.3)]
    told.choices[RequestId("q#1")] = [attempt(R1, 100.01, first_at=100.4, last_at=100.9)]
    told.last_choice, told.done_at = RequestId("q#1"), 100.9
    explanation = explain(told, 200.0)
    assert {span.replica for span in explanation.spans} == {"", "r1"}
    assert [row.replica for row in explanation.placements] == ["r0", "r1"]


_TIMES = st.none() | st.floats(99, 112)


@given(st.lists(st.tuples(st.floats(99, 110), _TIMES, _TIMES, _TIMES), max_size=4), _TIMES)
def test_spans_follow_each_other_without_a_gap_and_sum_to_the_whole(
    stays: list[tuple[float, float | None, float | None, float | None]], done_at: float | None
):
    """Even of times that contradict each other, as a clock or a bug might give them."""
    told = record()
    told.done_at = None if done_at is None else max(done_at, 100.0)
    told.choices[RequestId("q#0")] = [
        attempt(R0, at, first_at=first, last_at=last, given_up_at=given_up)
        for at, first, last, given_up in stays
    ]
    explanation = explain(told, 112.0)
    end = 0.0
    for span in explanation.spans:
        assert span.start == pytest.approx(end)
        assert span.seconds > 0
        assert span.name in WORDS
        end = span.start + span.seconds
    assert end == pytest.approx(explanation.seconds)
