"""RooflineExecutor: steps that take as long as the cost model says, and draw known tokens.

The token at a position is a function of the request's seed and the position alone (texts.py), so
a request that goes on elsewhere goes on with the same text, and whoever receives it can check it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.costs.roofline import StepWork
from headrace.core.scheduler.plan import StepResult
from headrace.twin.texts import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.core.costs.roofline import StepTime
    from headrace.core.scheduler.plan import Row, StepPlan
    from headrace.twin.texts import Text
    from headrace.types import SequenceId, TokenId


class RooflineExecutor:
    """Runs steps for SimulatedDevice. Its blocks hold nothing."""

    def __init__(self, step_time: StepTime, vocab_size: int) -> None:
        self._step_time = step_time
        self._vocab_size = vocab_size
        self._texts: dict[SequenceId, Text] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step at once; ``seconds`` says how long it would have taken."""
        texts = self._texts
        for sequence in plan.ends:
            texts.pop(sequence, None)
        for start in plan.starts:
            texts[start.sequence] = text_of(start.sampling.seed, self._vocab_size)
        tokens: list[TokenId | None] = []
        for sequence, begin, known, _, samples in plan.rows:
            end = begin + (1 if known is None else len(known))
            tokens.append(texts[sequence].token(end) if samples else None)
        return StepResult(tokens=tokens, seconds=self._step_time.of(work_of(plan.rows)))


def work_of(rows: Iterable[Row]) -> StepWork:
    """Return what a step's rows compute. A row of one token is a decode."""
    tokens = sequences = pairs = prefill_context = decode_context = samples = 0
    for _, start, known, _, draws in rows:
        sequences += 1
        samples += draws
        length = 1 if known is None else len(known)
        tokens += length
        if length == 1:
            decode_context += start + 1
        else:
            prefill_context += start + length
            pairs += length * start + length * (length + 1) // 2  # causal
    return StepWork(tokens, sequences, pairs, prefill_context, decode_context, samples)
