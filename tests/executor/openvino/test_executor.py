"""OpenVinoExecutor in f32 against the numpy truth and against itself, on tiny models.

Tolerance: log-probabilities (some as low as -34) within 0.0005 of the truth, and of each other
however steps are composed. Not equal bit for bit: kernels for few and for many tokens add up in
different orders.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from executor_steps import (
    EXACT,
    VOCAB,
    TinyModel,
    distribution,
    distributions,
    log_softmax,
    new_sequence,
    row,
    run,
    start,
    step,
    tokens_of,
)

from headrace.errors import ExecutorFault, InvariantBroken
from headrace.executor.openvino.inputs import quick_size
from headrace.executor.openvino.repack import GATE_UP, QKV
from headrace.model.tensors import TensorKind
from headrace.types import BlockId, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.scheduler.plan import Row
    from headrace.executor.openvino.executor import OpenVinoExecutor

TOLERANCE = 5e-4
GREEDY = SamplingParams(temperature=0)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"architecture": "llama", "rope_factors": True, "tied": False},
        {"architecture": "qwen2"},
        {"architecture": "qwen3", "head_dim": 32},
        {"matrix_kind": TensorKind.Q4_0},
        {"matrix_kind": TensorKind.Q8_0, "embedding_kind": TensorKind.F16},
        {"matrix_kind": TensorKind.F16, "embedding_kind": TensorKind.F32},
        {"matrix_kind": TensorKind.Q5_1, "embedding_kind": TensorKind.Q4_1},
    ],
    ids=str,
)
def test_distributions_equal_the_truth_at_every_position(
    tiny: Callable[..., TinyModel], arguments: dict[str, object]
):
    model, tokens = tiny(**arguments), tokens_of(70)
    truth = log_softmax(model.reference.logits(tokens))
    found = run(model.executor(), tokens, [3, 1, 2], [1] * 70)
    assert_same(found, truth)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 31, 32, 33, 64, 69])
def test_chunks_of_every_size_end_in_the_same_distribution(executor: OpenVinoExecutor, size: int):
    tokens = tokens_of(69, seed=1)
    whole = run(executor, tokens, [0, 1, 2], [69])[-1]
    chunks = [size] * (69 // size) + ([69 % size] if 69 % size else [])
    assert_same(run(executor, tokens, [5, 4, 6], chunks)[-1], whole)


def test_a_step_of_prefills_and_decodes_gives_each_row_what_it_gives_alone(
    executor: OpenVinoExecutor,
):
    texts = [tokens_of(length, seed=length) for length in (1, 5, 33, 64)]
    tables = [[0, 1], [2, 3], [4, 5], [6, 7]]
    alone = [run(executor, *pair, [len(pair[0])])[-1] for pair in zip(texts, tables, strict=True)]
    ids = [new_sequence(executor) for _ in texts]
    for index in (0, 2):  # these will be decodes: all but the last token is computed before
        done = texts[index][:-1]
        if done:
            step(executor, row(ids[index], 0, done, tables[index], samples=False))
    rows = [
        row(ids[0], 0, texts[0], tables[0]),
        row(ids[1], 0, texts[1], tables[1]),
        row(ids[2], 32, texts[2][-1:], tables[2]),
        row(ids[3], 0, texts[3], tables[3]),
    ]
    found = distributions(step(executor, *rows))
    for index in range(4):
        assert_same(found[index], alone[index])


def test_rows_that_do_not_sample_draw_nothing(executor: OpenVinoExecutor):
    first, second = new_sequence(executor), new_sequence(executor)
    rows = (
        row(first, 0, tokens_of(9), [0], samples=False),
        row(second, 0, tokens_of(4), [1]),
    )
    result = step(executor, *rows)
    assert result.tokens[0] is None
    assert result.tokens[1] is not None
    assert step(executor, row(first, 9, tokens_of(3), [0], samples=False)).tokens == [None]


def test_two_sequences_share_the_blocks_of_a_prefix(executor: OpenVinoExecutor):
    prefix, tails = tokens_of(64, seed=2), (tokens_of(9, seed=3), tokens_of(20, seed=4))
    alone = [run(executor, prefix + tail, [10, 11, 12], [64 + len(tail)])[-1] for tail in tails]
    run(executor, prefix, [0, 1], [64])
    ids = [new_sequence(executor) for _ in tails]
    rows = [row(ids[i], 64, tails[i], [0, 1, 2 + i]) for i in range(2)]
    found = distributions(step(executor, *rows))
    for index in range(2):
        assert_same(found[index], alone[index])


def test_a_copied_block_goes_on_by_itself(executor: OpenVinoExecutor):
    prefix, tails = tokens_of(40, seed=5), (tokens_of(6, seed=6), tokens_of(6, seed=7))
    alone = [run(executor, prefix + tail, [10, 11], [46])[-1] for tail in tails]
    run(executor, prefix, [0, 1], [40])
    ids = [new_sequence(executor) for _ in tails]
    rows = [row(ids[0], 40, tails[0], [0, 1]), row(ids[1], 40, tails[1], [0, 2])]
    found = distributions(step(executor, *rows, copies=((1, 2),)))
    for index in range(2):
        assert_same(found[index], alone[index])


def test_blocks_survive_being_read_out_and_written_into_other_blocks(executor: OpenVinoExecutor):
    tokens = tokens_of(70, seed=8)
    whole = run(executor, tokens, [0, 1, 2], [70])[-1]
    run(executor, tokens[:69], [3, 4, 5], [69])
    content = executor.read_blocks([BlockId(3), BlockId(4), BlockId(5)])
    assert content.shape == (3, executor.spec.block_bytes)
    executor.write_blocks([BlockId(i) for i in (3, 4, 5)], np.zeros_like(content))
    executor.write_blocks([BlockId(i) for i in (9, 7, 8)], content)
    sequence = new_sequence(executor)
    found = distributions(step(executor, row(sequence, 69, tokens[69:], [9, 7, 8])))[0]
    assert_same(found, whole)


def test_content_of_another_shape_is_refused(executor: OpenVinoExecutor):
    with pytest.raises(ValueError, match="must have shape"):
        executor.write_blocks([BlockId(0)], np.zeros((1, 7), np.uint8))


def test_tokens_left_open_are_those_of_the_step_before(executor: OpenVinoExecutor):
    prompt = tokens_of(12, seed=9)
    fed, open_ = new_sequence(executor, GREEDY), new_sequence(executor, GREEDY)
    both = step(executor, row(fed, 0, prompt, [0]), row(open_, 0, prompt, [1])).tokens
    assert both[0] == both[1] is not None
    token = both[0]
    for position in range(12, 20):
        given = (token,) if token is not None else None
        result = step(executor, row(fed, position, given, [0]), row(open_, position, None, [1]))
        assert result.tokens[0] == result.tokens[1]
        token = result.tokens[0]


def test_generated_tokens_follow_the_truth(tiny: Callable[..., TinyModel]):
    model = tiny(architecture="qwen2")
    executor, known = model.executor(), list(tokens_of(10, seed=10))
    sequence = new_sequence(executor, GREEDY)
    token = step(executor, row(sequence, 0, tuple(known), [0, 1])).tokens[0]
    for position in range(10, 40):
        truth = model.reference.logits(known)[-1]
        assert token is not None
        assert truth[token] > truth.max() - TOLERANCE
        known.append(token)
        token = step(executor, row(sequence, position, None, [0, 1])).tokens[0]


def test_logprobs_and_failures_name_the_rows_of_the_plan(
    executor: OpenVinoExecutor, caplog: pytest.LogCaptureFixture
):
    silent, broken, heard = (
        new_sequence(executor, sampling)
        for sampling in (
            GREEDY,
            SamplingParams(temperature=0, logit_bias=((10**6, 1.0),)),
            SamplingParams(temperature=0, logprobs=1),
        )
    )
    rows = [
        row(sequence, 0, tokens_of(3), [block], samples=block > 0)
        for block, sequence in enumerate((silent, broken, heard))
    ]
    caplog.set_level("CRITICAL", "headrace.executor.sampler")
    result = step(executor, *rows)
    assert [index for index, _ in result.failures] == [1]
    assert [index for index, _ in result.logprobs] == [2]
    assert [token is None for token in result.tokens] == [True, True, False]


def test_a_step_without_rows_only_keeps_the_books(executor: OpenVinoExecutor):
    result = step(executor, starts=(start(10**9),), copies=((0, 1),))
    assert list(result.tokens) == []
    assert result.seconds >= 0


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_stacking_matrices_changes_nothing(tiny: Callable[..., TinyModel], architecture: str):
    model, tokens = tiny(architecture=architecture), tokens_of(40, seed=11)
    plain = run(model.executor(replace(EXACT, stacks=())), tokens, [0, 1], [40])[0]
    stacked = model.executor(replace(EXACT, stacks=(QKV, GATE_UP)))
    assert_same(run(stacked, tokens, [0, 1], [40])[0], plain)


def test_a_closed_executor_is_at_fault(tiny: Callable[..., TinyModel]):
    executor = tiny().executor()
    sequence = new_sequence(executor)
    executor.close()
    executor.close()
    with pytest.raises(ExecutorFault, match="closed"):
        step(executor, row(sequence, 0, (1, 2), [0]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(0, 0, (10**6,), [0]), "tokens from 1000000"),
        (row(0, 0, (-1,), [0]), "tokens from -1"),
        (row(0, 0, (1,), [24]), "blocks from 24 to 24, there are 24"),
        (row(0, 250, (1,) * 7, list(range(9))), "positions from 250 to 256"),
        (row(0, 31, (1, 2), [0]), r"end at \[33\] with room for \[32\]"),
        (row(0, 0, (), [0]), "without tokens"),
    ],
)
def test_plans_that_reach_outside_the_memory_are_refused(
    executor: OpenVinoExecutor, bad: Row, message: str
):
    with pytest.raises(InvariantBroken, match=message):
        step(executor, bad)


@pytest.mark.parametrize("length", [64, 65, 100, 128, 129, 170])
def test_steps_that_are_filled_up_give_the_same_distributions(
    tiny: Callable[..., TinyModel], length: int
):
    model, tokens = tiny(), tokens_of(length, seed=12)
    plain = run(model.executor(), tokens, list(range(6)), [length])
    filling = model.executor(replace(EXACT, pads_steps=True))
    others = [BlockId(i) for i in range(18)]
    filling.write_blocks(others, np.zeros_like(filling.read_blocks(others)))
    filled = run(filling, tokens, list(range(18, 24)), [length])
    assert_same(filled, plain)
    assert (filling.read_blocks(others) == 0).all()


def test_quick_sizes_are_multiples_of_128_or_what_they_were():
    assert [quick_size(n) for n in (1, 64, 65, 128, 129, 160, 161, 256, 257, 500)] == (
        [1, 64, 128, 128, 129, 160, 256, 256, 384, 512]
    )


@pytest.mark.parametrize("num_right", [0, 2, 5])
def test_drafts_change_neither_tokens_nor_distributions(executor: OpenVinoExecutor, num_right: int):
    sampling = SamplingParams(temperature=0.8, seed=4, logprobs=VOCAB)
    prompt, table = tokens_of(40, seed=8), [1, 2, 0]
    sequence = new_sequence(executor, sampling)
    results = [step(executor, row(sequence, 0, prompt, table))]
    for at in range(40, 47):
        results.append(step(executor, row(sequence, at, None, table)))
    text = [result.tokens[0] for result in results]
    known = tuple(token for token in text if token is not None)

    sequence = new_sequence(executor, sampling)
    step(executor, row(sequence, 0, prompt, table))
    drafts = tuple(
        token if i < num_right else (token + 1) % VOCAB for i, token in enumerate(known[1:6])
    )
    other = new_sequence(executor, GREEDY)
    drafted = row(sequence, 40, (known[0], *drafts), table)._replace(num_drafts=5)
    result = step(executor, row(other, 0, prompt, [4, 5]), drafted)
    assert result.tokens[0] is not None
    drawn = (result.tokens[1], *dict(result.more).get(1, ()))
    assert drawn == known[1 : 2 + num_right]
    assert [index for index, _ in result.logprobs] == [1] * (num_right + 1)
    for place, (_, logprobs) in enumerate(result.logprobs):
        alone = distributions(results[1 + place])[0]
        assert logprobs.token == known[1 + place]
        assert_same(distribution(logprobs), alone)
    # what wrong drafts left in the cache is overwritten before it is read
    at = 41 + num_right
    following = step(executor, row(sequence, at, (known[at - 40],), table))
    assert_same(distributions(following)[0], distributions(results[at - 39])[0])
