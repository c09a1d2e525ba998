"""SimulatedExecutor: deterministic tokens, modelled time, and the checks of block contents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan, StepResult
from headrace.errors import InvariantBroken
from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SimulatedExecutor, StepTime
from headrace.types import BlockId, SamplingParams, SequenceId, StepId

BLOCK = 4
SPEC = ExecutorSpec(
    model_identity="simulated",
    vocab_size=97,
    max_model_len=64,
    block_size=BLOCK,
    num_blocks=16,
    block_bytes=BLOCK * 8,
)
PROMPT = (5, 6, 7, 8, 9, 10)
GREEDY = SamplingParams(temperature=0)


def start_of(
    sequence: int = 0,
    prompt: tuple[int, ...] = PROMPT,
    output: tuple[int, ...] = (),
    sampling: SamplingParams = GREEDY,
    min_tokens: int = 0,
    stop: tuple[int, ...] = (),
) -> SequenceStart:
    return SequenceStart(
        sequence=SequenceId(sequence),
        sampling=sampling,
        prompt=prompt,
        output=output,
        min_tokens=min_tokens,
        stop_token_ids=stop,
    )


def row_of(
    tokens: tuple[int, ...] | None,
    *,
    at: int = 0,
    blocks: tuple[int, ...] = (0, 1),
    sequence: int = 0,
    samples: bool = True,
    num_drafts: int = 0,
) -> Row:
    table = tuple(map(BlockId, blocks))
    return Row(SequenceId(sequence), at, tokens, table, samples, num_drafts)


def step(
    executor: SimulatedExecutor,
    *rows: Row,
    starts: tuple[SequenceStart, ...] = (),
    copies: tuple[tuple[int, int], ...] = (),
    ends: tuple[int, ...] = (),
) -> StepResult:
    return executor.execute(
        StepPlan(
            step_id=StepId(0),
            rows=rows,
            starts=starts,
            copies=tuple((BlockId(a), BlockId(b)) for a, b in copies),
            ends=tuple(map(SequenceId, ends)),
        )
    )


def generate(count: int, start: SequenceStart) -> list[int]:
    """Draw ``count`` tokens of one sequence, prompt in one piece."""
    executor = SimulatedExecutor(SPEC, check_kv=True)
    known = [*start.prompt, *start.output]
    blocks = tuple(range(8))
    result = step(executor, row_of(tuple(known), blocks=blocks), starts=(start,))
    out = [result.tokens[0]]
    for i in range(count - 1):
        result = step(executor, row_of(None, at=len(known) + i, blocks=blocks))
        out.append(result.tokens[0])
    return [token for token in out if token is not None]


def test_the_same_prompt_gives_the_same_tokens_and_another_prompt_others():
    assert generate(10, start_of()) == generate(10, start_of())
    assert generate(10, start_of()) != generate(10, start_of(prompt=(5, 6, 7, 8, 9, 11)))


def test_a_sequence_continued_elsewhere_goes_on_with_the_same_text():
    whole = generate(12, start_of())
    as_output = generate(8, start_of(output=tuple(whole[:4])))
    as_prompt = generate(8, start_of(prompt=PROMPT + tuple(whole[:4])))
    assert as_output == as_prompt == whole[4:]


def test_seed_and_choice_matter_only_when_the_temperature_does():
    def text(temperature: float, seed: int, choice: int) -> list[int]:
        sampling = SamplingParams(temperature=temperature, seed=seed, choice=choice)
        return generate(8, start_of(sampling=sampling))

    assert text(0, 1, 0) == text(0, 2, 1)
    assert len({tuple(text(1, seed, choice)) for seed in (1, 2) for choice in (0, 1)}) == 4


def test_stop_tokens_are_not_drawn_before_min_tokens():
    free = generate(6, start_of())
    held = generate(6, start_of(min_tokens=3, stop=(free[0],)))
    assert free[0] not in held[:3]
    assert generate(1, start_of(min_tokens=0, stop=(free[0],))) == free[:1]


def test_chunked_prompts_draw_only_at_their_end():
    executor = SimulatedExecutor(SPEC, check_kv=True)
    first = step(executor, row_of(PROMPT[:4], samples=False), starts=(start_of(),))
    second = step(executor, row_of(PROMPT[4:], at=4))
    assert list(first.tokens) == [None]
    assert list(second.tokens) == generate(1, start_of())


def test_logprobs_are_given_for_as_many_alternatives_as_asked():
    executor = SimulatedExecutor(SPEC)
    sampling = SamplingParams(temperature=0, logprobs=3)
    result = step(executor, row_of(PROMPT), starts=(start_of(sampling=sampling),))
    ((index, logprobs),) = result.logprobs
    assert index == 0
    assert logprobs.token == result.tokens[0]
    assert len(logprobs.top) == 3


def test_time_follows_the_step_model():
    model = StepTime(base=1, per_prefill=10, per_decode=100, per_context=0.001)
    executor = SimulatedExecutor(SPEC, model)
    starts = (start_of(0), start_of(1, output=(3,)))
    result = step(executor, row_of(PROMPT), row_of((3,), at=6, sequence=1), starts=starts)
    assert result.seconds == pytest.approx(1 + 6 * 10 + 100 + (6 + 7) * 0.001)


def test_a_prefix_shared_through_blocks_passes_the_check():
    executor = SimulatedExecutor(SPEC, check_kv=True)
    step(executor, row_of(PROMPT), starts=(start_of(),))
    shared = row_of(PROMPT[4:], at=4, blocks=(0, 2), sequence=1)
    assert step(executor, shared, starts=(start_of(1),)).tokens == generate(1, start_of())


def test_wrong_blocks_in_a_context_are_found():
    executor = SimulatedExecutor(SPEC, check_kv=True)
    step(executor, row_of(PROMPT), starts=(start_of(),))
    with pytest.raises(InvariantBroken, match="block 3 holds nothing at position 0"):
        step(executor, row_of(PROMPT[4:], at=4, blocks=(3, 2), sequence=1), starts=(start_of(1),))
    other = start_of(2, prompt=(1, *PROMPT[1:]))
    with pytest.raises(InvariantBroken, match="block 0 holds another prefix at position 0"):
        step(executor, row_of(PROMPT[4:], at=4, blocks=(0, 2), sequence=2), starts=(other,))


def test_a_row_may_not_rely_on_another_row_of_its_own_step():
    executor = SimulatedExecutor(SPEC, check_kv=True)
    rows = (row_of(PROMPT), row_of(PROMPT[4:], at=4, blocks=(0, 2), sequence=1))
    with pytest.raises(InvariantBroken, match="before the rows"):
        step(executor, *rows, starts=(start_of(), start_of(1)))


def test_a_row_may_not_overwrite_the_context_of_another():
    executor = SimulatedExecutor(SPEC, check_kv=True)
    step(executor, row_of(PROMPT), starts=(start_of(),))
    rows = (row_of(None, at=6), row_of((9, 9, 9), blocks=(0, 1), sequence=1))
    with pytest.raises(InvariantBroken, match="after the rows"):
        step(executor, *rows, starts=(start_of(1, prompt=(9, 9, 9)),))


def test_copies_happen_before_the_rows_write():
    executor = SimulatedExecutor(SPEC, check_kv=True)
    step(executor, row_of(PROMPT), starts=(start_of(),))
    fork = start_of(1, prompt=(*PROMPT, 50))
    step(
        executor,
        row_of((50,), at=6, blocks=(0, 2), sequence=1),
        row_of(None, at=6),
        starts=(fork,),
        copies=((1, 2),),
    )
    step(executor, row_of(None, at=7), row_of(None, at=7, blocks=(0, 2), sequence=1))


def test_blocks_survive_being_read_out_and_written_elsewhere():
    executor = SimulatedExecutor(SPEC, check_kv=True)
    step(executor, row_of(PROMPT), starts=(start_of(),))
    content = executor.read_blocks([BlockId(0), BlockId(1)])
    assert content.shape == (2, SPEC.block_bytes)
    assert content.dtype == np.uint8
    executor.write_blocks([BlockId(9), BlockId(7)], content)
    step(executor, row_of(None, at=6, blocks=(9, 7)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of(PROMPT, sequence=3), "never started"),
        (row_of(PROMPT, blocks=(0,)), "do not fit 1 blocks"),
        (row_of(PROMPT, blocks=(0, 16)), "block 16 is not one of 16"),
        (row_of((5, 6, 7, 8, 9, 11)), "the row computes"),
        (row_of((*PROMPT, 1)), "the row computes"),
        (row_of(PROMPT[:5]), "samples is True"),
        (row_of(PROMPT, samples=False), "samples is False"),
        (row_of(()), "do not fit"),
    ],
)
def test_a_row_that_does_not_fit_its_sequence_is_a_broken_invariant(row: Row, message: str):
    executor = SimulatedExecutor(SPEC, check_kv=True)
    with pytest.raises(InvariantBroken, match=message):
        step(executor, row, starts=(start_of(),))


def test_state_is_dropped_when_sequences_end():
    executor = SimulatedExecutor(SPEC, check_kv=True)
    step(executor, row_of(PROMPT), starts=(start_of(),))
    assert executor.num_sequences == 1
    step(executor, ends=(0, 5))
    assert executor.num_sequences == 0


def test_checked_blocks_need_eight_bytes_a_token():
    with pytest.raises(ValueError, match="must be 32, not 99"):
        SimulatedExecutor(replace(SPEC, block_bytes=99), check_kv=True)


def drafting(
    num_right: int, num_drafts: int = 4
) -> tuple[SimulatedExecutor, list[int], StepResult]:
    """Return an executor after a step with drafts, the text from its prompt on, and the result."""
    text = [*PROMPT, *generate(8, start_of())]
    executor = SimulatedExecutor(SPEC, check_kv=True)
    step(executor, row_of(PROMPT, blocks=(0, 1, 2, 3)), starts=(start_of(),))
    at = len(PROMPT)
    drafts = [*text[at + 1 : at + 1 + num_right], *[96] * (num_drafts - num_right)]
    row = row_of((text[at], *drafts), at=at, blocks=(0, 1, 2, 3), num_drafts=num_drafts)
    return executor, text, step(executor, row)


@pytest.mark.parametrize("num_right", [0, 1, 4])
def test_drafts_are_drawn_on_from_as_long_as_they_are_right(num_right: int):
    executor, text, result = drafting(num_right)
    at = len(PROMPT) + 1
    drawn = [result.tokens[0], *dict(result.more).get(0, ())]
    assert drawn == text[at : at + 1 + num_right]
    at += num_right  # computed are all drafts that were right; the last token drawn is not
    following = step(executor, row_of((text[at],), at=at, blocks=(0, 1, 2, 3)))
    assert following.tokens == [text[at + 1]]


def test_a_row_that_relies_on_a_wrong_draft_is_found_out():
    executor, text, _ = drafting(1)
    at = len(PROMPT) + 3  # one too far: the draft computed there was wrong
    with pytest.raises(InvariantBroken):
        step(executor, row_of((text[at],), at=at, blocks=(0, 1, 2, 3)))
    executor, text, _ = drafting(1)
    at = len(PROMPT) + 2
    table = (0, 1, 2, 3)
    step(executor, row_of((text[at],), at=at, blocks=table))
    executor._blocks._slots[at // BLOCK, at % BLOCK] += 1  # type: ignore[union-attr]
    with pytest.raises(InvariantBroken, match="another prefix"):
        step(executor, row_of((text[at + 1],), at=at + 1, blocks=table))


def test_drafts_without_a_known_token_or_without_sampling_are_refused():
    for bad in (
        row_of((1, 2), num_drafts=2),
        row_of((*PROMPT, 2), num_drafts=1, samples=False),
    ):
        executor = SimulatedExecutor(SPEC, check_kv=True)
        with pytest.raises(InvariantBroken):
            step(executor, bad, starts=(start_of(),))


def test_the_time_of_drafts_is_that_of_decodes():
    model = StepTime(base=1, per_prefill=10, per_decode=100, per_context=0)
    assert model.of([row_of((1, 2, 3), at=6, num_drafts=2)]) == 1 + 3 * 100
