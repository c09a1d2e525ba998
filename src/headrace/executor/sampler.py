"""Sampling state of the sequences of one executor, and the drawing of a step's tokens.

The rule itself is in sampling.py; here are who draws with which settings, what a sequence has
said so far, and the short ways for batches that need little. Knows nothing of models or blocks.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headrace.errors import BadGrammar
from headrace.executor import sampling
from headrace.executor.constraints import UNCONSTRAINED, Constraints
from headrace.executor.philox import uniforms
from headrace.executor.sampling import Penalised, SamplingFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.scheduler.plan import SequenceStart, StepPlan
    from headrace.executor.constraints import ConstraintState
    from headrace.executor.sampling import F32
    from headrace.types import SamplingParams, SequenceId, TokenId, TokenLogprobs, Tokens

_log = logging.getLogger(__name__)


class Draw(NamedTuple):
    """A token to be drawn: of which sequence, at which position of it.

    It takes one row of logits, and one more for each of ``drafts``, the tokens guessed for this
    position and those behind it: as long as the guess is what is drawn, drawing goes on.
    """

    sequence: SequenceId
    position: Tokens
    drafts: tuple[TokenId, ...] = ()


@dataclass(slots=True, kw_only=True)
class Drawn:
    """What a step drew, aligned with the Draws; a failed one has no token.

    ``more`` holds what Draws with drafts drew after their first token, ``logprobs`` an entry for
    each token in order.
    """

    tokens: list[TokenId | None]
    more: list[tuple[int, tuple[TokenId, ...]]] = field(default_factory=list)
    logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def note_more(self, index: int, tokens: tuple[TokenId, ...]) -> None:
        """Keep what a Draw drew after its first token."""
        if tokens:
            self.more.append((index, tokens))

    def note_failure(self, index: int, reason: str) -> None:
        """Keep why a Draw has no token at all."""
        if self.tokens[index] is None:
            self.failures.append((index, reason))


class Sampler:
    """Draws tokens. Sequences are known from their start to their end."""

    def __init__(self, constraints: Constraints | None = None) -> None:
        self._voices: dict[SequenceId, _Voice] = {}
        self._constraints = constraints or Constraints()
        self._constrained: dict[SequenceId, ConstraintState] = {}

    def begin_step(self, plan: StepPlan) -> None:
        """Forget the sequences that ended, and meet those that start.

        Masks of those that will draw under a constraint are begun.
        """
        for sequence in plan.ends:
            self._voices.pop(sequence, None)
            self._constrained.pop(sequence, None)
        for start in plan.starts:
            state = self._constraints.begin(start)
            self._voices[start.sequence] = _Voice(start, state)
            if state is not UNCONSTRAINED:
                self._constrained[start.sequence] = state
        if self._constrained:
            for row in plan.rows:
                if row.samples and row.sequence in self._constrained:
                    self._constrained[row.sequence].prepare()

    def last_token(self, sequence: SequenceId) -> TokenId:
        """Return what the sequence drew last. Token 0 if that draw failed: nobody will see it."""
        return self._voices[sequence].last_token or 0

    def all_take_the_best(self, draws: Sequence[Draw]) -> bool:
        """Tell whether every draw is the argmax of untouched logits, with nothing reported."""
        voices = self._voices
        return all(voices[draw.sequence].takes_the_best() for draw in draws)

    def accept(self, draws: Sequence[Draw], tokens: Sequence[TokenId]) -> Drawn:
        """Take tokens that were found elsewhere to be the best, after ``all_take_the_best``.

        There is one for each row of logits that the draws take.
        """
        drawn, at = Drawn(tokens=[]), 0
        for index, draw in enumerate(draws):
            voice, token = self._voices[draw.sequence], tokens[at]
            voice.accept(token)
            drawn.tokens.append(token)
            if draw.drafts:
                further = _confirmed(draw.drafts, tokens[at:])
                for token in further:
                    voice.accept(token)
                drawn.note_more(index, further)
            at += 1 + len(draw.drafts)
        return drawn

    def draw(self, draws: Sequence[Draw], logits_SV: F32) -> Drawn:
        """Draw from ``logits_SV``, whose rows lie in the draws' order. One that fails fails alone.

        A failure behind a draft that was right is left for the next step to meet again.
        """
        if self.all_take_the_best(draws):
            best = logits_SV.argmax(axis=1)
            if math.isfinite(logits_SV[np.arange(len(best)), best].sum()):
                return self.accept(draws, best.tolist())
        numbers = self._uniforms(draws)
        drawn, at = Drawn(tokens=[None] * len(draws)), 0
        for index, draw in enumerate(draws):
            token = self._draw_one(index, draw.sequence, logits_SV[at], numbers[at], drawn)
            drawn.tokens[index] = token
            if draw.drafts:
                self._draw_on(index, draw, logits_SV[at:], numbers[at:], drawn)
            at += 1 + len(draw.drafts)
        return drawn

    def _draw_on(
        self, index: int, draw: Draw, logits_SV: F32, numbers: Sequence[float], drawn: Drawn
    ) -> None:
        """Draw at the positions behind the first as long as drafts are right."""
        token = drawn.tokens[index]
        further: list[TokenId] = []
        for place, draft in enumerate(draw.drafts, start=1):
            if token != draft:
                break
            token = self._draw_one(index, draw.sequence, logits_SV[place], numbers[place], drawn)
            if token is not None:
                further.append(token)
        drawn.note_more(index, tuple(further))

    def _draw_one(
        self, index: int, sequence: SequenceId, logits_V: F32, number: float, drawn: Drawn
    ) -> TokenId | None:
        """Draw a token; note its log-probabilities, or why there is none."""
        try:
            token, logprobs = self._voices[sequence].draw(logits_V, number)
        except (SamplingFailed, BadGrammar) as error:
            drawn.note_failure(index, str(error))
        except Exception:
            _log.exception("sampling of sequence %d failed", sequence)
            drawn.note_failure(index, "sampling failed (an internal error)")
        else:
            if logprobs is not None:
                drawn.logprobs.append((index, logprobs))
            return token
        return None

    def _uniforms(self, draws: Sequence[Draw]) -> list[float]:
        """Return the random number of each row of logits (0 where every draw is greedy)."""
        params = [self._voices[draw.sequence].params for draw in draws]
        sizes = [1 + len(draw.drafts) for draw in draws]
        if all(sampling.is_greedy(one) for one in params):
            return [0.0] * sum(sizes)
        seeds, choices, positions = list[int](), list[int](), list[int]()
        for one, size, draw in zip(params, sizes, draws, strict=True):
            seeds += [one.seed] * size
            choices += [one.choice] * size
            positions += range(draw.position, draw.position + size)
        numbers: list[float] = uniforms(seeds, choices, positions).tolist()
        return numbers


def _confirmed(drafts: tuple[TokenId, ...], tokens: Sequence[TokenId]) -> tuple[TokenId, ...]:
    """Return the tokens drawn after ``tokens[0]``: one behind each draft that was right."""
    for num_right, (draft, token) in enumerate(zip(drafts, tokens, strict=False)):
        if draft != token:
            return tuple(tokens[1 : 1 + num_right])
    return tuple(tokens[1 : 1 + len(drafts)])


class _Voice:
    """One sequence: its settings, and of its tokens what they make necessary to remember."""

    def __init__(self, start: SequenceStart, constraint: ConstraintState) -> None:
        self.params: SamplingParams = start.sampling
        self._constraint = constraint
        self.last_token: TokenId | None = start.output[-1] if start.output else None
        self._missing = start.min_tokens - len(start.output)  # before it may stop
        self._stop_tokens = start.stop_token_ids
        self._history = _History(start) if sampling.has_penalties(start.sampling) else None
        self._plain = (
            self._history is None and not start.sampling.logit_bias and constraint is UNCONSTRAINED
        )

    def takes_the_best(self) -> bool:
        """Tell whether the next token is the argmax of the untouched logits."""
        params = self.params
        untouched = self._plain and self._missing <= 0
        return untouched and params.logprobs is None and sampling.is_greedy(params)

    def draw(self, logits_V: F32, uniform: float) -> tuple[TokenId, TokenLogprobs | None]:
        """Draw the next token from the model's logits, which are left as they are.

        Where a grammar admits nothing more, ``min_tokens`` gives way.
        """
        self.last_token = None
        mask = self._constraint.mask()
        adjusted_V = logits_V.copy()
        if mask is not None:
            mask.apply(adjusted_V)
        must_go_on = self._missing > 0 and not (mask is not None and mask.is_complete)
        sampling.adjust(
            adjusted_V,
            self.params,
            forbidden=self._stop_tokens if must_go_on else (),
            penalised=self._history.penalised() if self._history else None,
        )
        token = sampling.draw(adjusted_V, self.params, uniform)
        self.accept(token)
        if self.params.logprobs is None:
            return token, None
        return token, sampling.logprobs_of(logits_V, token, self.params.logprobs)

    def accept(self, token: TokenId) -> None:
        """Append a token that was drawn."""
        self.last_token = token
        self._missing -= 1
        self._constraint.accept(token)
        if self._history is not None:
            self._history.append(token)


class _History:
    """Distinct tokens of a sequence, with their counts in its output."""

    def __init__(self, start: SequenceStart) -> None:
        tokens = dict.fromkeys(start.prompt) if start.sampling.repetition_penalty != 1 else {}
        self._counts: dict[TokenId, int] = dict.fromkeys(tokens, 0)
        for token in start.output:
            self.append(token)

    def append(self, token: TokenId) -> None:
        """Count one more output token."""
        self._counts[token] = self._counts.get(token, 0) + 1

    def penalised(self) -> Penalised:
        """Return the tokens whose logits change."""
        num = len(self._counts)
        return Penalised(
            ids=np.fromiter(self._counts.keys(), np.int64, num),
            counts=np.fromiter(self._counts.values(), np.int64, num),
        )
