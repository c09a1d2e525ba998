"""Calibration: a few steps of known sizes, so that the first requests meet a step-time model.

Rows read and write the first blocks, which nobody uses yet; what they compute is thrown away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.core.costs.step_model import StepLoad, StepObservation, num_pairs
from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan
from headrace.types import BlockId, SamplingParams, SequenceId, StepId

if TYPE_CHECKING:
    from headrace.executor.base import Executor, ExecutorSpec
    from headrace.types import Tokens


class _Trial(NamedTuple):
    """A chunk of ``prefill`` tokens and so many decodes, all with ``context`` tokens before."""

    prefill: Tokens
    decodes: int
    context: Tokens


_TRIALS = (
    _Trial(64, 0, 0),
    _Trial(0, 1, 32),
    _Trial(0, 1, 1024),
    _Trial(0, 8, 128),
    _Trial(16, 4, 128),
    _Trial(0, 32, 256),
    _Trial(256, 0, 0),
    _Trial(64, 16, 512),
    _Trial(0, 16, 1024),
    _Trial(128, 0, 1024),
)
"""From short to long, so that what the device cannot hold is cut where it matters least. About half
a second for a 135M model on two cores."""


def calibrate(executor: Executor) -> tuple[StepObservation, ...]:
    """Run trial steps; return what they took. Raises ExecutorFault."""
    spec = executor.spec
    observations = []
    for number, trial in enumerate(_TRIALS):
        rows = _rows(trial, spec)
        starts = tuple(_start(row.sequence) for row in rows)
        ends = tuple(row.sequence for row in rows)
        plan = StepPlan(step_id=StepId(number), rows=rows, starts=starts)
        seconds = executor.execute(plan).seconds
        executor.execute(StepPlan(step_id=StepId(number), rows=(), ends=ends))
        observations.append(StepObservation(_load(rows), seconds))
    return tuple(observations)


def _rows(trial: _Trial, spec: ExecutorSpec) -> tuple[Row, ...]:
    """Return the rows of a trial, cut to what the caches hold."""
    room = min(spec.max_model_len, spec.num_blocks * spec.block_size)
    blocks = tuple(BlockId(i) for i in range(-(-room // spec.block_size)))
    lengths = [1] * trial.decodes + ([trial.prefill] if trial.prefill else [])
    rows = []
    for number, wanted in enumerate(lengths):
        length = min(wanted, room)
        start = min(trial.context, room - length)
        rows.append(Row(SequenceId(number), start, (0,) * length, blocks, True))
    return tuple(rows)


def _start(sequence: SequenceId) -> SequenceStart:
    return SequenceStart(
        sequence=sequence,
        sampling=SamplingParams(temperature=0),
        prompt=(0,),
        output=(),
        min_tokens=0,
        stop_token_ids=(),
    )


def _load(rows: tuple[Row, ...]) -> StepLoad:
    decodes = [row for row in rows if row.num_tokens == 1]
    chunks = [row for row in rows if row.num_tokens > 1]
    return StepLoad(
        prefill=sum(row.num_tokens for row in chunks),
        decodes=len(decodes),
        context=sum(row.start for row in decodes),
        pairs=sum(num_pairs(row.start, row.num_tokens) for row in chunks),
    )
