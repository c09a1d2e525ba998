"""Where each millisecond of a request went: a record as a waterfall of spans without gaps.

Every span begins where the one before ended, the first at the request's last byte and the last
ends with its answer, so that they sum to the measured time by construction. Of several choices
the one that ended last is told: the others took no longer.

::

    receive | prepare | queue | engine queue | prefill | decode | move | ... | decode | finish
                        `------------- an attempt ------------'   `- to the next attempt
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.monitoring.goodput import check
from headrace.monitoring.shapes import CandidateRow, Explanation, PlacementRow, Span, TargetRow

if TYPE_CHECKING:
    from headrace.monitoring.records import Attempt, RequestRecord
    from headrace.types import Seconds


def explain(record: RequestRecord, now: Seconds) -> Explanation:
    """Return where its time went and why it was sent where it went."""
    return Explanation(
        id=record.shown_id,
        unix=record.unix,
        state=record.state,
        tenant=record.tenant,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        ttft=record.ttft,
        seconds=record.seconds(now),
        spans=_spans(record, now),
        placements=[_placement(record, attempt) for attempt in record.attempts],
        priority=record.priority.value,
        targets=[
            TargetRow(name=name, asked=asked, got=got, missed=is_missed)
            for name, asked, got, is_missed in check(record.targets, record.pace(now))
        ],
    )


class _Waterfall:
    """Spans from ``begin`` to ``end`` at the most; what ends before the last span is left out."""

    def __init__(self, begin: Seconds, end: Seconds) -> None:
        self.spans: list[Span] = []
        self._begin = begin
        self._last = begin
        self._end = end

    def until(self, at: Seconds, name: str, *, replica: str = "", note: str = "") -> None:
        """Add what went on until ``at``."""
        at = min(at, self._end)
        if at > self._last:
            start, seconds = self._last - self._begin, at - self._last
            self.spans.append(
                Span(name=name, start=start, seconds=seconds, replica=replica, note=note)
            )
            self._last = at

    def rest(self, name: str, *, replica: str = "", note: str = "") -> None:
        """Add what is left."""
        self.until(self._end, name, replica=replica, note=note)


def _spans(record: RequestRecord, now: Seconds) -> list[Span]:
    is_done = record.done_at is not None
    waterfall = _Waterfall(record.arrived_at, record.arrived_at + record.seconds(now))
    waterfall.until(record.begun_at, "receive")
    waterfall.until(record.prepared_at, "prepare", note=f"{record.prompt_tokens} tokens")
    attempts = _told(record)
    for attempt in attempts:
        _tell(waterfall, attempt)
    if not attempts:
        waterfall.rest("queue", note=f"no replica took it: {record.state}" if is_done else "")
    elif is_done:
        waterfall.rest("finish")
    else:
        waterfall.rest("decode" if attempts[-1].given_up_at is None else "queue")
    return waterfall.spans


def _told(record: RequestRecord) -> list[Attempt]:
    """Return the attempts of the choice that ended last."""
    if record.last_choice is not None:
        return record.choices.get(record.last_choice, [])
    return next(iter(record.choices.values()), [])


def _tell(waterfall: _Waterfall, attempt: Attempt) -> None:
    """Add one attempt, and the way to the next if it was given up."""
    replica = attempt.replica
    waterfall.until(attempt.dispatched_at, "queue")
    if attempt.first_at is not None:
        planned = attempt.dispatched_at
        if attempt.timing is not None:
            planned = max(planned, attempt.first_at - attempt.timing.prefill)
        waterfall.until(planned, "engine queue", replica=replica, note=_queue_note(attempt))
        waterfall.until(attempt.first_at, "prefill", replica=replica, note=_prefill_note(attempt))
        if attempt.last_at is not None:
            waterfall.until(attempt.last_at, "decode", replica=replica)
    if attempt.given_up_at is not None:
        waterfall.until(attempt.given_up_at, "move", replica=replica, note=attempt.reason)
    elif attempt.first_at is None:
        waterfall.rest("engine queue", replica=replica, note="no token came")


def _queue_note(attempt: Attempt) -> str:
    if attempt.timing is None:
        return ""
    return f"waited {_ms(attempt.timing.waited)} in the engine, the rest is the way there"


def _prefill_note(attempt: Attempt) -> str:
    cached = f"{attempt.cached_tokens} of {attempt.prompt_tokens} tokens cached"
    if attempt.timing is None:
        return cached
    chunks = attempt.timing.chunks
    note = f"{chunks} chunk{'' if chunks == 1 else 's'}, {cached}"
    if attempt.timing.preemptions:
        note += f", put back {attempt.timing.preemptions} times"
    return note


def _placement(record: RequestRecord, attempt: Attempt) -> PlacementRow:
    choice = attempt.choice
    return PlacementRow(
        at=attempt.dispatched_at - record.arrived_at,
        replica=attempt.replica,
        policy=attempt.policy,
        reason=str(choice.reason),
        predicted_ttft=choice.predicted_ttft,
        candidates=[
            CandidateRow(replica=replica, cost=cost, cached_tokens=cached_tokens)
            for replica, cost, cached_tokens in choice.scores
        ],
        actual_ttft=(
            None if attempt.first_at is None else attempt.first_at - attempt.dispatched_at
        ),
    )


def _ms(seconds: Seconds) -> str:
    return f"{1000 * seconds:.1f} ms"
