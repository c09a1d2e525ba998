"""Sampler: what a sequence remembers, and each setting's effect on tokens."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from headrace.core.scheduler.plan import SequenceStart, StepPlan
from headrace.executor.sampler import Draw, Drawn, Sampler
from headrace.types import SamplingParams, SequenceId, StepId

GREEDY = SamplingParams(temperature=0)
VOCAB = 400


def start_of(
    params: SamplingParams,
    sequence: int = 0,
    prompt: tuple[int, ...] = (1, 2),
    output: tuple[int, ...] = (),
    min_tokens: int = 0,
    stop: tuple[int, ...] = (),
) -> SequenceStart:
    return SequenceStart(
        sequence=SequenceId(sequence),
        sampling=params,
        prompt=prompt,
        output=output,
        min_tokens=min_tokens,
        stop_token_ids=stop,
    )


def sampler_of(*starts: SequenceStart) -> Sampler:
    sampler = Sampler()
    sampler.begin_step(StepPlan(step_id=StepId(0), rows=(), starts=starts))
    return sampler


def draws(*pairs: tuple[int, int]) -> list[Draw]:
    return [Draw(SequenceId(sequence), position) for sequence, position in pairs]


def logits(seed: int = 0, rows: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, VOCAB)) * 2).astype(np.float32)


def text(start: SequenceStart, count: int = 12) -> list[int | None]:
    """Draw ``count`` tokens from one unchanging distribution."""
    sampler, row = sampler_of(start), logits()
    first = len(start.prompt) + len(start.output)
    return [sampler.draw(draws((0, first + i)), row).tokens[0] for i in range(count)]


EFFECTS = {
    "temperature": (SamplingParams(seed=3), {"temperature": 0.2}),
    "top_p": (SamplingParams(seed=3), {"top_p": 0.2}),
    "top_k": (SamplingParams(seed=3), {"top_k": 2}),
    "min_p": (SamplingParams(seed=3), {"min_p": 0.5}),
    "presence_penalty": (GREEDY, {"presence_penalty": 2.0}),
    "frequency_penalty": (GREEDY, {"frequency_penalty": 0.5}),
    "repetition_penalty": (GREEDY, {"repetition_penalty": 2.0}),
    "logit_bias": (GREEDY, {"logit_bias": ((17, 50.0),)}),
    "seed": (SamplingParams(seed=3), {"seed": 4}),
    "choice": (SamplingParams(seed=3), {"choice": 1}),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_each_setting_changes_tokens(name: str):
    params, change = EFFECTS[name]
    assert text(start_of(params)) != text(start_of(replace(params, **change)))


def test_every_setting_of_the_type_is_covered_here():
    assert {*EFFECTS, "logprobs"} == set(SamplingParams.__dataclass_fields__)


def test_stop_tokens_are_forbidden_until_enough_was_generated():
    best = int(logits().argmax())
    held = text(start_of(GREEDY, min_tokens=3, stop=(best,)), 5)
    assert best not in held[:3]
    assert held[3:] == [best, best]
    assert text(start_of(GREEDY, output=(9, 9), min_tokens=3, stop=(best,)), 2) == [held[0], best]


def test_presence_and_frequency_look_at_the_output_only_and_repetition_at_both():
    best = int(logits().argmax())
    for params in (replace(GREEDY, presence_penalty=2), replace(GREEDY, frequency_penalty=2)):
        assert text(start_of(params, prompt=(best,)), 1) == [best]
        assert text(start_of(params, output=(best,)), 1) != [best]
    params = replace(GREEDY, repetition_penalty=5)
    assert text(start_of(params, prompt=(best,)), 1) != [best]
    assert text(start_of(params, output=(best,)), 1) != [best]


def test_a_sequence_that_goes_on_elsewhere_draws_the_same_tokens():
    params = SamplingParams(seed=11, frequency_penalty=0.3, repetition_penalty=1.2, top_p=0.95)
    whole = text(start_of(params), 10)
    rest = text(start_of(params, output=tuple(t for t in whole[:4] if t is not None)), 6)
    assert rest == whole[4:]


def test_a_draw_does_not_depend_on_the_rest_of_the_batch():
    params = [GREEDY, SamplingParams(seed=1), SamplingParams(seed=2, top_k=5), GREEDY]
    starts = [start_of(one, i) for i, one in enumerate(params)]
    rows = logits(5, 4)
    together = sampler_of(*starts).draw(draws(*((i, 9) for i in range(4))), rows).tokens
    alone = [sampler_of(starts[i]).draw(draws((i, 9)), rows[[i]]).tokens[0] for i in range(4)]
    assert together == alone


def test_a_batch_of_greedy_rows_is_the_argmax_and_is_remembered():
    sampler = sampler_of(start_of(GREEDY, 0), start_of(GREEDY, 1))
    rows = logits(1, 2)
    drawn = sampler.draw(draws((0, 2), (1, 2)), rows)
    assert drawn == Drawn(tokens=rows.argmax(1).tolist())
    assert [sampler.last_token(SequenceId(i)) for i in (0, 1)] == drawn.tokens


def test_tokens_found_on_the_device_are_accepted_as_drawn():
    sampler = sampler_of(start_of(GREEDY))
    assert sampler.all_take_the_best(draws((0, 2)))
    assert sampler.accept(draws((0, 2)), [77]).tokens == [77]
    assert sampler.last_token(SequenceId(0)) == 77


@pytest.mark.parametrize(
    "start",
    [
        start_of(SamplingParams()),
        start_of(replace(GREEDY, logprobs=0)),
        start_of(replace(GREEDY, presence_penalty=1)),
        start_of(replace(GREEDY, logit_bias=((1, 1.0),))),
        start_of(GREEDY, min_tokens=1, stop=(3,)),
    ],
)
def test_rows_that_need_their_logits_say_so(start: SequenceStart):
    assert not sampler_of(start).all_take_the_best(draws((0, 2)))


def test_logprobs_are_of_the_untouched_distribution():
    params = replace(GREEDY, logprobs=2, logit_bias=((17, 50.0),), temperature=0.5)
    rows = logits()
    before = rows.copy()
    ((index, logprobs),) = sampler_of(start_of(params)).draw(draws((0, 2)), rows).logprobs
    exact = before[0] - np.logaddexp.reduce(before[0].astype(np.float64))
    assert (rows == before).all()
    assert index == 0
    assert logprobs.token == 17
    assert logprobs.logprob == pytest.approx(exact[17], abs=1e-4)
    assert [token for token, _ in logprobs.top] == np.argsort(-before[0])[:2].tolist()


def test_a_row_that_fails_fails_alone(caplog: pytest.LogCaptureFixture):
    broken = replace(GREEDY, logit_bias=((VOCAB + 5, 1.0),))
    sampler = sampler_of(start_of(broken, 0), start_of(GREEDY, 1), start_of(GREEDY, 2))
    rows = logits(1, 3)
    rows[2] = np.nan
    with caplog.at_level(logging.CRITICAL, "headrace.executor.sampler"):
        drawn = sampler.draw(draws((0, 2), (1, 2), (2, 2)), rows)
    assert drawn.tokens == [None, int(rows[1].argmax()), None]
    assert [index for index, _ in drawn.failures] == [0, 2]
    assert "not finite" in drawn.failures[1][1]
    assert sampler.last_token(SequenceId(0)) == 0


def test_ended_sequences_are_forgotten():
    sampler = sampler_of(start_of(GREEDY))
    sampler.begin_step(StepPlan(step_id=StepId(1), rows=(), ends=(SequenceId(0), SequenceId(4))))
    with pytest.raises(KeyError):
        sampler.last_token(SequenceId(0))


PENALISED = SamplingParams(seed=5, frequency_penalty=0.7, repetition_penalty=1.3, logprobs=1)


@pytest.mark.parametrize(
    "start",
    [
        start_of(GREEDY),
        start_of(GREEDY, min_tokens=3, stop=(int(logits(9, 6).argmax(1)[1]),)),
        start_of(replace(GREEDY, logprobs=2)),
        start_of(SamplingParams(seed=3, top_p=0.9)),
        start_of(PENALISED, output=(4, 4)),
        start_of(replace(PENALISED, presence_penalty=1.0, logit_bias=((7, 2.0),)), min_tokens=9),
    ],
    ids=["greedy", "min_tokens", "logprobs", "seeded", "penalties", "everything"],
)
@pytest.mark.parametrize("num_right", [0, 1, 3, 5])
def test_drafts_change_no_token_and_drawing_ends_at_the_first_that_is_wrong(
    start: SequenceStart, num_right: int
):
    rows, first = logits(9, 6), len(start.prompt) + len(start.output)
    plain = sampler_of(start)
    one_by_one = [plain.draw(draws((0, first + i)), rows[[i]]) for i in range(6)]
    tokens = [drawn.tokens[0] for drawn in one_by_one]
    drafts = tuple(token if i < num_right else VOCAB - 1 for i, token in enumerate(tokens[:5]))

    sampler = sampler_of(start, start_of(GREEDY, 1))
    other = logits(2, 1)
    drawn = sampler.draw(
        [Draw(SequenceId(0), first, drafts), Draw(SequenceId(1), 2)],
        np.concatenate([rows, other]),
    )
    assert [drawn.tokens[0], *dict(drawn.more).get(0, ())] == tokens[: num_right + 1]
    assert drawn.tokens[1] == int(other[0].argmax())
    expected = [entry for one in one_by_one[: num_right + 1] for entry in one.logprobs]
    assert drawn.logprobs == expected
    assert sampler.last_token(SequenceId(0)) == tokens[num_right]
    # what the sequence remembers is what it said, not what was guessed
    if num_right < 5:
        following = sampler.draw(draws((0, first + num_right + 1)), rows[[num_right + 1]])
        assert following.tokens[0] == tokens[num_right + 1]


def test_a_failure_behind_a_right_draft_leaves_what_was_drawn():
    rows = logits(9, 3)
    rows[1] = np.nan
    first = int(rows[0].argmax())
    drawn = sampler_of(start_of(GREEDY)).draw([Draw(SequenceId(0), 2, (first, 7))], rows)
    assert drawn == Drawn(tokens=[first])
    rows[0] = np.nan
    drawn = sampler_of(start_of(GREEDY)).draw([Draw(SequenceId(0), 2, (first, 7))], rows)
    assert drawn.tokens == [None]
    assert len(drawn.failures) == 1
