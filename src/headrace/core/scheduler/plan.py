"""What crosses between the Batch Scheduler and an executor: a step's plan and its result.

Plans are frozen and self-contained: an executor may run step n while step n+1 is being planned.
Rows are tuples because a step of 256 sequences builds 256 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import (
        BlockId,
        Constraint,
        SamplingParams,
        Seconds,
        SequenceId,
        StepId,
        TokenId,
        TokenLogprobs,
        Tokens,
    )


class Row(NamedTuple):
    """One sequence's share of a step.

    Keys and values of ``tokens`` are computed at positions ``start ..`` and written into the
    blocks of ``blocks`` (position p lies in ``blocks[p // block_size]``). ``tokens`` is None for
    one token that is not known yet: the one this sequence draws in the step before, which the
    executor has when it comes to this step. If ``samples``, a token is drawn from the logits of
    the last position.

    The last ``num_drafts`` of ``tokens`` are guesses at what the sequence will draw. A row that
    samples then draws at the position before the first guess, and goes on from one position to
    the next as long as the token drawn is the one guessed. Keys and values of guesses behind the
    last token drawn are of no use, and nobody reads them.
    """

    sequence: SequenceId
    start: Tokens
    tokens: tuple[TokenId, ...] | None
    blocks: tuple[BlockId, ...]
    samples: bool
    num_drafts: int = 0

    @property
    def num_tokens(self) -> Tokens:
        """Tokens computed by this row."""
        return 1 if self.tokens is None else len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStart:
    """Sent once, with the first step that holds a row of the sequence (again after preemption).

    ``prompt`` is the context for repetition penalties; ``output`` what was generated so far.
    While fewer than ``min_tokens`` were generated, ``stop_token_ids`` are not drawn, unless the
    ``constraint`` admits nothing else.
    """

    sequence: SequenceId
    sampling: SamplingParams
    prompt: tuple[TokenId, ...]
    output: tuple[TokenId, ...]
    min_tokens: Tokens
    stop_token_ids: tuple[TokenId, ...]
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One step of an executor, in the order: ``ends``, ``copies``, ``starts``, then the rows."""

    step_id: StepId
    rows: tuple[Row, ...]
    copies: tuple[tuple[BlockId, BlockId], ...] = ()  # (source, target): copy-on-write
    starts: tuple[SequenceStart, ...] = ()
    ends: tuple[SequenceId, ...] = ()  # sampling state that may be dropped

    @property
    def num_tokens(self) -> Tokens:
        """Tokens computed by the whole step."""
        return sum(row.num_tokens for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step drew, aligned with ``plan.rows``.

    ``tokens[i]`` is None where row i does not sample or its sampling failed; the latter are
    named in ``failures`` with a reason fit for the client. What rows with drafts drew after
    their first token is in ``more``. ``seconds`` is the executor's own time, Python included.
    """

    tokens: Sequence[TokenId | None]
    seconds: Seconds
    more: tuple[tuple[int, tuple[TokenId, ...]], ...] = ()  # (row index, further tokens)
    logprobs: tuple[tuple[int, TokenLogprobs], ...] = ()  # (row index, of each token in order)
    failures: tuple[tuple[int, str], ...] = ()  # (row index, reason)
