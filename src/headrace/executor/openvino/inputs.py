"""From the rows of a plan to the arrays that the graph takes."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.errors import InvariantBroken
from headrace.executor.sampler import Draw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.core.scheduler.plan import Row
    from headrace.executor.base import ExecutorSpec
    from headrace.types import BlockId, SequenceId, TokenId, Tokens

I32: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """Arrays of one step, named and shaped as in graph.py, and who draws from its logits."""

    tokens: I32
    positions: I32
    sampled: I32
    past_lens: I32
    row_begins: I32
    blocks: I32
    block_begins: I32
    longest: int
    draws: list[Draw]
    drawing_rows: list[int]  # aligned with ``draws``: which row of the plan


def quick_size(num_tokens: Tokens) -> Tokens:
    """Return how many tokens to compute where at least ``num_tokens`` must be, on AMX.

    Multiplications with quantised weights unpack them once for each 64 or 128 rows, and badly
    for what is left over: on a Sapphire Rapids core SmolLM2-135M takes 203 ms for 272 tokens and
    173 ms for 384 (benchmarks/results/executor.md).
    """
    if num_tokens <= 64 or 128 < num_tokens <= 160:
        return num_tokens
    return -(-num_tokens // 128) * 128


def padded(
    inputs: StepInputs, num_tokens: Tokens, scratch: BlockId, block_size: Tokens
) -> StepInputs:
    """Add rows that nobody reads, up to ``num_tokens``; all write into the ``scratch`` block."""
    missing = num_tokens - inputs.tokens.size
    if missing <= 0:
        return inputs
    lengths = [block_size] * (missing // block_size)
    if missing % block_size:
        lengths.append(missing % block_size)
    ends = np.cumsum(lengths, dtype=np.int32)
    numbers = np.arange(1, len(lengths) + 1, dtype=np.int32)
    return replace(
        inputs,
        tokens=np.concatenate([inputs.tokens, np.zeros(missing, np.int32)]),
        positions=np.concatenate(
            [inputs.positions, np.arange(missing, dtype=np.int32) % block_size]
        ),
        past_lens=np.concatenate([inputs.past_lens, np.zeros(len(lengths), np.int32)]),
        row_begins=np.concatenate([inputs.row_begins, inputs.row_begins[-1] + ends]),
        blocks=np.concatenate([inputs.blocks, np.full(len(lengths), scratch, np.int32)]),
        block_begins=np.concatenate([inputs.block_begins, inputs.block_begins[-1] + numbers]),
    )


def check_inputs(inputs: StepInputs, spec: ExecutorSpec) -> None:
    """Refuse what would make the graph read or write outside its memory. Raises InvariantBroken."""
    capacities = np.diff(inputs.block_begins) * spec.block_size
    ends = inputs.past_lens + np.diff(inputs.row_begins)
    for name, values, limit in (
        ("token", inputs.tokens, spec.vocab_size),
        ("block", inputs.blocks, spec.num_blocks),
        ("position", inputs.positions, spec.max_model_len),
    ):
        if values.size and (values.min() < 0 or values.max() >= limit):
            raise InvariantBroken(
                f"a step has {name}s from {values.min()} to {values.max()}, there are {limit}"
            )
    if (ends > capacities).any() or (np.diff(inputs.row_begins) == 0).any():
        raise InvariantBroken(
            f"a step has rows that end at {ends.tolist()} with room for {capacities.tolist()} "
            "tokens, or rows without tokens"
        )


def step_inputs(
    rows: Sequence[Row], last_token: Callable[[SequenceId], TokenId], block_size: Tokens
) -> StepInputs:
    """Lay rows out one after the other. ``last_token`` supplies tokens that a plan leaves open."""
    tokens, blocks, sampled = array("i"), array("i"), array("i")
    row_begins, block_begins = array("i", [0]), array("i", [0])
    draws, drawing_rows = [], []
    for index, (sequence, start, new_tokens, row_blocks, samples, num_drafts) in enumerate(rows):
        if new_tokens is None:
            tokens.append(last_token(sequence))
            end = start + 1
        else:
            tokens.extend(new_tokens)
            end = start + len(new_tokens)
        blocks.extend(row_blocks[: -(-end // block_size)])
        row_begins.append(len(tokens))
        block_begins.append(len(blocks))
        if samples:
            sampled.extend(range(len(tokens) - 1 - num_drafts, len(tokens)))
            drafts = new_tokens[-num_drafts:] if new_tokens and num_drafts else ()
            draws.append(Draw(sequence, end - num_drafts, drafts))
            drawing_rows.append(index)
    past_lens = np.array([row.start for row in rows], np.int32)
    begins = np.frombuffer(row_begins, np.int32)
    lengths = np.diff(begins)
    return StepInputs(
        tokens=np.frombuffer(tokens, np.int32),
        positions=np.arange(len(tokens), dtype=np.int32)
        + np.repeat(past_lens - begins[:-1], lengths),
        sampled=np.frombuffer(sampled, np.int32) if sampled else np.zeros(0, np.int32),
        past_lens=past_lens,
        row_begins=begins,
        blocks=np.frombuffer(blocks, np.int32),
        block_begins=np.frombuffer(block_begins, np.int32),
        longest=int((past_lens + lengths).max()),
        draws=draws,
        drawing_rows=drawing_rows,
    )
