"""RooflineExecutor: the work of rows, and texts that depend on seed and position alone."""

from __future__ import annotations

from headrace.core.costs.roofline import Deployment, StepWork
from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan
from headrace.twin.executor import RooflineExecutor, work_of
from headrace.twin.hardware import GPUS
from headrace.twin.models import MODELS
from headrace.twin.texts import text_of
from headrace.types import SamplingParams, SequenceId, StepId, Tokens

MODEL = MODELS["smollm2-135m"]


def row(sequence: int, start: Tokens, length: Tokens | None, *, samples: bool = True) -> Row:
    tokens = None if length is None else (1,) * length
    return Row(SequenceId(sequence), start, tokens, (), samples)


def start(sequence: int, seed: int) -> SequenceStart:
    return SequenceStart(
        sequence=SequenceId(sequence),
        sampling=SamplingParams(seed=seed),
        prompt=(),
        output=(),
        min_tokens=0,
        stop_token_ids=(),
    )


def test_the_work_of_a_step_is_that_of_its_rows():
    rows = [row(0, 10, None), row(1, 20, 1), row(2, 100, 4, samples=False)]
    assert work_of(rows) == StepWork(
        tokens=6,
        sequences=3,
        prefill_pairs=101 + 102 + 103 + 104,
        prefill_context=104,
        decode_context=11 + 21,
        samples=2,
    )


def test_a_sequence_that_goes_on_elsewhere_goes_on_with_the_same_text():
    step_time = Deployment(model=MODEL, gpu=GPUS["cpu"]).step_time()
    here, there = (RooflineExecutor(step_time, MODEL.vocab) for _ in range(2))
    text = text_of(7, MODEL.vocab)
    first = StepPlan(step_id=StepId(0), rows=(row(0, 0, 5),), starts=(start(0, 7),))
    assert here.execute(first).tokens == [text.token(5)]
    again = StepPlan(
        step_id=StepId(0),
        rows=(row(3, 0, 6), row(4, 0, 6, samples=False)),
        starts=(start(3, 7), start(4, 8)),
    )
    result = there.execute(again)
    assert result.tokens == [text.token(6), None]
    assert result.seconds == step_time.of(work_of(again.rows))


def test_a_range_of_a_text_is_its_tokens_one_by_one():
    text = text_of(12345, 1000)
    assert text.tokens(40, 100) == [text.token(position) for position in range(40, 140)]
    assert text_of(12346, 1000).tokens(40, 4) != text.tokens(40, 4)


def test_drafts_that_are_right_are_drawn_and_cost_what_a_chunk_does():
    step_time = Deployment(model=MODEL, gpu=GPUS["cpu"]).step_time()
    executor, text = RooflineExecutor(step_time, MODEL.vocab), text_of(7, MODEL.vocab)
    known, *drawn = text.tokens(4, 5)
    drafts = (*drawn[:2], drawn[2] + 1)
    row = Row(SequenceId(0), 4, (known, *drafts), (), True, num_drafts=3)
    result = executor.execute(StepPlan(step_id=StepId(0), rows=(row,), starts=(start(0, 7),)))
    assert result.tokens == [drawn[0]]
    assert result.more == ((0, (drawn[1], drawn[2])),)
    work = work_of([row])
    assert (work.tokens, work.samples) == (4, 4)
    assert result.seconds == step_time.of(work)
