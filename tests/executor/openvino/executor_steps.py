"""Running sequences on an executor by hand: blocks chosen, chunks chosen, distributions seen."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan, StepResult
from headrace.executor.openvino.build import build_openvino_executor
from headrace.executor.openvino.cpu import Precision
from headrace.executor.openvino.options import KvPrecision, OpenVinoOptions
from headrace.executor.reference import Reference, load_reference
from headrace.testing.tiny_model import VOCABULARY
from headrace.types import BlockId, SamplingParams, SequenceId, StepId, TokenLogprobs

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.executor.openvino.executor import OpenVinoExecutor

VOCAB = len(VOCABULARY)
ALL = SamplingParams(temperature=0, logprobs=VOCAB)
_ids = itertools.count()

EXACT = OpenVinoOptions(
    kv_tokens=32 * 24,
    max_model_len=256,
    precision=Precision.F32,
    kv_precision=KvPrecision.F32,
    num_threads=1,
)


class TinyModel:
    """A model file with its truth."""

    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self.cache = cache
        self.reference: Reference = load_reference(path)

    def executor(self, options: OpenVinoOptions = EXACT) -> OpenVinoExecutor:
        return build_openvino_executor(self.path, self.cache, options)


def tokens_of(count: int, seed: int = 0) -> tuple[int, ...]:
    """Return random tokens."""
    return tuple(np.random.default_rng(seed).integers(0, VOCAB, count).tolist())


def start(sequence: int, sampling: SamplingParams = ALL) -> SequenceStart:
    return SequenceStart(
        sequence=SequenceId(sequence),
        sampling=sampling,
        prompt=(),
        output=(),
        min_tokens=0,
        stop_token_ids=(),
    )


def row(
    sequence: int, at: int, tokens: tuple[int, ...] | None, blocks: list[int], samples: bool = True
) -> Row:
    return Row(SequenceId(sequence), at, tokens, tuple(map(BlockId, blocks)), samples)


def step(
    executor: OpenVinoExecutor,
    *rows: Row,
    starts: tuple[SequenceStart, ...] = (),
    copies: tuple[tuple[int, int], ...] = (),
) -> StepResult:
    pairs = tuple((BlockId(source), BlockId(target)) for source, target in copies)
    return executor.execute(StepPlan(step_id=StepId(0), rows=rows, starts=starts, copies=pairs))


def distribution(logprobs: TokenLogprobs) -> np.ndarray:
    """Return all log-probabilities by token."""
    values = np.empty(VOCAB)
    for token, logprob in logprobs.top:
        values[token] = logprob
    return values


def distributions(result: StepResult) -> dict[int, np.ndarray]:
    """Return log-probabilities by row index."""
    return {index: distribution(logprobs) for index, logprobs in result.logprobs}


def new_sequence(executor: OpenVinoExecutor, sampling: SamplingParams = ALL) -> int:
    sequence = next(_ids)
    step(executor, starts=(start(sequence, sampling),))
    return sequence


def run(
    executor: OpenVinoExecutor, tokens: tuple[int, ...], blocks: list[int], chunks: list[int]
) -> np.ndarray:
    """Compute ``tokens`` in chunks; return the distribution after each chunk, [chunks, V]."""
    sequence, at, found = new_sequence(executor), 0, []
    for size in chunks:
        result = step(executor, row(sequence, at, tokens[at : at + size], blocks))
        found.append(distributions(result)[0])
        at += size
    assert at == len(tokens)
    return np.array(found)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
