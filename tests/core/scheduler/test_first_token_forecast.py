"""Forecast: what it says against what comes, in virtual time; and who is refused by its word."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from playing import Arrival, poisson, quantile, rehearsal, request_of

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.door import Door
from headrace.core.scheduler.events import Submit
from headrace.types import PriorityClass

if TYPE_CHECKING:
    import random

    from headrace.core.scheduler.sequence import Sequence
    from headrace.testing.rehearsal import Rehearsal
    from headrace.types import Request


def make(index: int, rng: random.Random, _now: float) -> Request:
    return request_of(f"r{index}", rng.randrange(64, 900), rng.randrange(16, 128))


def played(load: list[Arrival], *, num_blocks: int = 2048, **settings: object) -> Rehearsal:
    config = SchedulerConfig(itl=0.15, **{"max_num_seqs": 32, **settings})  # type: ignore[arg-type]
    engine = rehearsal(config, num_blocks=num_blocks)
    engine.play(load)
    return engine


def errors(monkeypatch: pytest.MonkeyPatch, load: list[Arrival], **settings: object) -> list[float]:
    """Relative errors of what is forecast when each request comes."""
    said: dict[str, float] = {}

    def noting(self: Door, sequence: Sequence, now: float) -> None:
        said[sequence.request.id] = self.forecast.first_token(sequence)

    monkeypatch.setattr(Door, "_too_late", noting)
    stories = played(load, **settings).stories
    return [abs(said[s.request.id] - s.ttft) / s.ttft for s in stories.values() if s.arrived > 5]


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("rate", "seconds", "settings", "bar"),
    [
        (0.8, 60, {}, 0.2),
        (1.8, 60, {}, 0.25),
        (3.0, 40, {}, 0.4),
        (1.8, 60, {"max_num_seqs": 8}, 0.3),
        (3.0, 40, {"order": "arrival", "fair": False}, 0.3),
    ],
    ids=["light", "busy", "overload", "few places", "first come"],
)
def test_the_median_error_is_small_under_light_and_heavy_load(
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    seconds: float,
    settings: dict[str, object],
    bar: float,
):
    assert quantile(errors(monkeypatch, poisson(rate, seconds, make), **settings), 0.5) <= bar


def with_targets(rate: float, seconds: float) -> list[Arrival]:
    def asking(index: int, rng: random.Random, now: float) -> Request:
        target = (1.0, 3.0, 10.0)[index % 3] if index % 4 else None
        request = make(index, rng, now)
        return replace(request, first_token_by=None if target is None else now + target)

    return poisson(rate, seconds, asking)


def in_time(engine: Rehearsal) -> int:
    return sum(
        1
        for s in engine.stories.values()
        if s.request.first_token_by is not None
        and s.times
        and s.times[0] <= s.request.first_token_by
    )


def test_refusing_what_would_be_late_lets_far_more_be_in_time():
    load = with_targets(3.0, 40)
    without, refusing = played(load, refuse_late=False), played(load)
    assert in_time(refusing) >= 2 * in_time(without)
    asked = [s for s in refusing.stories.values() if s.request.first_token_by is not None]
    admitted = [s for s in asked if not s.reject]
    assert in_time(refusing) >= 0.7 * len(admitted)
    assert len(admitted) < len(asked)


def test_whoever_asks_for_nothing_is_never_refused():
    stories = played(with_targets(3.0, 40)).stories.values()
    assert not any(s.reject for s in stories if s.request.first_token_by is None)
    assert any(s.reject for s in stories)


def test_most_of_those_refused_would_have_been_late():
    load = with_targets(3.0, 30)
    refused = {
        s.request.id: s.request.first_token_by for s in played(load).stories.values() if s.reject
    }
    assert len(refused) >= 8
    late = 0
    sample = sorted(refused)[:8]
    for request_id in sample:
        alone = [(at, each) for at, each in load if each.id == request_id or each.id not in refused]
        story = played(alone, refuse_late=False).stories[request_id]
        late += story.times[0] > story.request.first_token_by  # type: ignore[operator]
    assert late >= 6


def test_a_long_pause_is_not_taken_for_the_pace_of_the_queue():
    burst = [(0.01 * i, request_of(f"a{i}", 64, 8)) for i in range(40)]
    again = [(1000 + at, request_of(f"b{i}", 64, 8)) for i, (at, _) in enumerate(burst)]
    last = request_of("asks", 64, 8, first_token_by=1000.4 + 30.0)
    engine = played([*burst, *again, (1000.4, last)], max_num_seqs=4)
    assert engine.stories[last.id].reject is None
    assert engine.stories[last.id].finish


def test_a_better_class_is_not_told_to_wait_for_a_worse_one():
    engine = rehearsal(SchedulerConfig(max_num_seqs=4))
    batch = [(0.0, request_of(f"b{i}", 256, 64, priority=PriorityClass.BATCH)) for i in range(100)]
    quick = request_of("quick", 32, 4, priority=PriorityClass.INTERACTIVE, first_token_by=3.0)
    engine.play([*batch, (2.0, quick)], until=4.0)
    story = engine.stories[quick.id]
    assert story.reject is None
    assert story.times[0] <= 3.0


def test_nobody_is_refused_before_the_engine_knows_its_own_speed():
    engine = rehearsal(SchedulerConfig())
    hasty = request_of("hasty", 900, 4, first_token_by=0.001)
    effects = engine.core.handle(Submit(hasty), 0.0)
    assert not any(type(effect).__name__ == "Reject" for effect in effects)
