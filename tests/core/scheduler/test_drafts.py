"""Drafts: the same text in fewer steps, where it pays, and no more steps or blocks where not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.drafts import (
    ENTER_PER_STEP,
    MARGIN,
    PRIOR_CHANCES,
    Lookup,
    Odds,
    Speculation,
    Stakes,
)
from headrace.core.scheduler.pacing import UNLIMITED
from headrace.core.scheduler.suffixes import SuffixIndex
from headrace.errors import ConfigError
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec, undisturbed
from headrace.types import (
    FinishReason,
    Request,
    RequestId,
    SamplingParams,
)

if TYPE_CHECKING:
    from headrace.testing.harness import EngineHarness

SPEC = simulated_spec(num_blocks=512, max_model_len=1024, vocab_size=50)
SEEDED = SamplingParams(seed=7, logprobs=1)


def engine_of(
    speculation: Speculation = Speculation.LOOKUP, *, repeats: bool = True, **fields: int
) -> EngineHarness:
    config = SchedulerConfig(speculation=speculation, **fields)
    return simulated_engine(SPEC, config, repeats=repeats)


def request_of(number: int = 0, vocabulary: int = 50, **fields: object) -> Request:
    values: dict[str, object] = {"max_tokens": 200, "sampling": GREEDY, **fields}
    prompt = tuple((number + 3 * i) % vocabulary for i in range(9))
    return Request(id=RequestId(f"r{number}"), prompt=prompt, **values)  # type: ignore[arg-type]


def num_drafts(engine: EngineHarness) -> list[int]:
    return [sum(row.num_drafts for row in plan.rows) for plan in engine.plans]


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_text_that_repeats_itself_comes_in_far_fewer_steps(sampling: SamplingParams, depth: int):
    request = request_of(sampling=sampling)
    plain = engine_of(Speculation.OFF, max_steps_in_flight=depth)
    drafting = engine_of(max_steps_in_flight=depth)
    for engine in (plain, drafting):
        engine.submit(request)
        engine.run_until_idle()
    assert drafting.tokens == plain.tokens
    assert len(plain.plans) == 200
    assert len(drafting.plans) < 60
    assert drafting.now < 0.6 * plain.now
    report = drafting.reports[-1]
    assert report.output_tokens_total == 200
    assert report.draft_tokens_total == sum(num_drafts(drafting))
    assert report.accepted_drafts_total == 200 - len(drafting.plans)
    if sampling.logprobs is not None:
        outputs = drafting.outputs[request.id]
        found = [entry.token for output in outputs for entry in output.logprobs]
        assert found == drafting.tokens[request.id]


def test_a_text_of_chance_soon_gets_no_drafts_and_loses_nothing():
    spec = simulated_spec(num_blocks=512, max_model_len=1024, vocab_size=12)
    times = []
    for speculation in Speculation:
        engine = simulated_engine(spec, SchedulerConfig(speculation=speculation))
        engine.submit(
            request_of(0, 12, max_tokens=800)
        )  # matches are everywhere, and go on by chance
        engine.run_until_idle()
        times.append(engine.now)
    drafts = num_drafts(engine)
    assert sum(drafts[:200]) <= 40
    assert sum(drafts[200:]) <= 0.1 * len(drafts[200:])
    assert times[1] < 1.01 * times[0]


def test_many_sequences_in_a_step_get_no_drafts_unless_they_are_nearly_certain():
    few, many = (engine_of(max_num_seqs=64), engine_of(max_num_seqs=64))
    for engine, number in ((few, 2), (many, 64)):
        for index in range(number):
            engine.submit(request_of(index, max_tokens=40))
        engine.run_until_idle()
    assert sum(num_drafts(few)) / 2 > 4 * sum(num_drafts(many)) / 64


def test_no_draft_goes_beyond_max_tokens_and_none_takes_a_scarce_block():
    spec = simulated_spec(num_blocks=13, max_model_len=1024, vocab_size=4)
    config = SchedulerConfig(speculation=Speculation.LOOKUP, max_num_seqs=2)
    engine = simulated_engine(spec, config, repeats=True)
    requests = [request_of(number, 4, max_tokens=15) for number in (0, 1)]
    for request in requests:
        engine.submit(request)
    engine.run_until_idle()
    assert any(num_drafts(engine))
    for plan in engine.plans:
        for row in plan.rows:
            assert row.start + row.num_tokens < 9 + 15
    assert engine.reports[-1].preemptions_total == 0
    for request in requests:
        expected = undisturbed(request, spec, repeats=True).tokens
        assert tuple(engine.tokens[request.id]) == expected


def test_a_stop_token_among_right_drafts_ends_the_text_and_the_rest_is_not_billed():
    free = undisturbed(request_of(), SPEC, repeats=True).tokens
    circle = len(set(free))
    stop = free[circle - 1]
    request = request_of(stop_token_ids=(stop,), min_tokens=5 * circle)
    expected = undisturbed(request, SPEC, repeats=True)
    engine = engine_of()
    engine.submit(request)
    engine.run_until_idle()
    assert tuple(engine.tokens[request.id]) == expected.tokens
    assert engine.finishes[request.id] is FinishReason.STOP
    report = engine.reports[-1]
    assert report.output_tokens_total == len(expected.tokens)
    assert report.accepted_drafts_total > 0


def test_an_abort_discards_the_drafts_in_flight():
    engine = engine_of()
    engine.submit(request_of())
    while not num_drafts(engine)[-1]:
        engine.finish_step()
    drawn = len(engine.tokens[RequestId("r0")])
    engine.abort(RequestId("r0"))
    engine.run_until_idle()
    assert len(engine.tokens[RequestId("r0")]) == drawn
    assert engine.reports[-1].discarded_tokens_total >= 1
    assert engine.core.scheduler.kv.counts().free == SPEC.num_blocks


def test_a_long_prompt_enters_the_index_in_pieces():
    tokens = [index % 997 for index in range(20_000)]
    lookup = Lookup(tokens, Odds())
    assert lookup.index.enter(ENTER_PER_STEP) == ENTER_PER_STEP
    assert lookup.index.num_missing == len(tokens) - 1 - ENTER_PER_STEP
    assert isinstance(lookup.index, SuffixIndex)


def test_odds_follow_what_was_seen_and_start_from_the_pool():
    pool = Odds(keep=0.99)
    assert pool.chance(40) == pytest.approx(PRIOR_CHANCES[-1])
    for _ in range(50):
        pool.note(2, right=False)
    fresh = Odds(pool)
    assert fresh.chance(3) == pool.chance(2) < 0.05
    for _ in range(20):
        fresh.note(2, right=True)
    assert fresh.chance(3) > 0.8
    assert fresh.chance(8) == pytest.approx(PRIOR_CHANCES[4])


def test_guesses_are_judged_whether_or_not_they_were_sent():
    tokens = [1, 2, 3, 9, 1, 2]
    lookup, pool = Lookup(tokens, Odds()), Odds()
    lookup.index.enter(100)
    match = lookup.index.longest()
    assert match is not None
    before = lookup.odds.chance(match.length)
    assert lookup.guess(match, 0) == ()
    assert not lookup.take_news()
    tokens.append(3)
    assert lookup.take_news()
    assert lookup.odds.chance(match.length) > before
    assert pool.chance(2) == pytest.approx(PRIOR_CHANCES[2])


def test_wrong_guesses_make_the_look_pause_longer_and_longer_up_to_a_limit():
    tokens = [1, 2, 3, 1, 2]
    lookup = Lookup(tokens, Odds())
    pauses = []
    for _ in range(6):
        lookup.index.enter(100)
        match = lookup.index.longest()
        assert match is not None
        guessed = lookup.guess(match, 1)
        tokens += [(guessed[0] + 1) % 3 + 4, 1, 2]
        lookup.take_news()
        pauses.append(0)
        while lookup.is_paused():
            pauses[-1] += 1
    assert pauses == [0, 1, 3, 3, 3, 3]


def stakes(*, tokens: int = 1, seconds_left: float = UNLIMITED) -> Stakes:
    return Stakes(tokens=tokens, seconds=0.01, per_draft=0.001, seconds_left=seconds_left)


def test_a_draft_pays_when_it_brings_more_a_second_than_the_step_does():
    odds = Odds()
    assert stakes().pays(MARGIN * 0.1 + 0.001)
    assert not stakes().pays(MARGIN * 0.1 - 0.001)
    assert not stakes(tokens=9).pays(1.0)
    assert stakes().take(odds, 64, limit=100) > stakes(tokens=4).take(odds, 64, limit=100) > 0
    assert stakes().take(odds, 64, limit=3) == 3
    assert stakes().take(odds, 64, limit=-1) == 0


def test_drafts_take_half_of_the_time_that_a_target_leaves():
    limited = stakes(seconds_left=0.0061)
    assert limited.take(Odds(), 64, limit=100) == 3
    assert limited.seconds_left == pytest.approx(0.0031)
    assert stakes(seconds_left=-0.001).take(Odds(), 64, limit=100) == 0


def test_max_drafts_has_a_range():
    with pytest.raises(ConfigError, match="max_drafts is 65; it must be 1 to 64"):
        SchedulerConfig(max_drafts=65)
