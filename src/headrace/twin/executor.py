"""RooflineExecutor: steps that take as long as the cost model says, and draw known tokens.

The token at a position is a function of the request's seed and the position alone (texts.py), so
a request that goes on elsewhere goes on with the same text, and whoever receives it can check it.
"""

from __future__ import annotations

from itertools import takewhile
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
        more: list[tuple[int, tuple[TokenId, ...]]] = []
        for index, (sequence, begin, known, _, samples, num_drafts) in enumerate(plan.rows):
            end = begin + (1 if known is None else len(known)) - num_drafts
            tokens.append(texts[sequence].token(end) if samples else None)
            if num_drafts and known is not None:
                drawn = texts[sequence].tokens(end, num_drafts + 1)
                num_right = _num_equal(drawn, known[-num_drafts:])
                if num_right:
                    more.append((index, tuple(drawn[1 : 1 + num_right])))
        seconds = self._step_time.of(work_of(plan.rows))
        return StepResult(tokens=tokens, more=tuple(more), seconds=seconds)


def _num_equal(tokens: Iterable[TokenId], drafts: Iterable[TokenId]) -> int:
    """Return how many leading drafts are the tokens drawn."""
    pairs = zip(tokens, drafts, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def work_of(rows: Iterable[Row]) -> StepWork:
    """Return what rows compute. A row of one token is a decode, one with drafts a chunk."""
    tokens = sequences = pairs = prefill_context = decode_context = samples = 0
    for _, start, known, _, draws, num_drafts in rows:
        sequences += 1
        samples += draws + num_drafts
        length = 1 if known is None else len(known)
        tokens += length
        if length == 1:
            decode_context += start + 1
        else:
            prefill_context += start + length
            pairs += length * start + length * (length + 1) // 2  # causal
    return StepWork(tokens, sequences, pairs, prefill_context, decode_context, samples)
