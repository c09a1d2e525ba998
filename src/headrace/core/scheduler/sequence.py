"""Sequence: a request inside one engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from headrace.core.scheduler.order import BATCH_RANK
from headrace.core.scheduler.plan import SequenceStart
from headrace.types import FinishReason

if TYPE_CHECKING:
    from headrace.core.kvcache.table import BlockTable
    from headrace.core.scheduler.drafts import Lookup
    from headrace.core.scheduler.fairness import Account
    from headrace.types import Request, Seconds, SequenceId, StepId, TokenId, Tokens


class Status(Enum):
    """Where a sequence is. ``WAITING <-> RUNNING -> ENDED``, and ``WAITING -> ENDED``."""

    WAITING = "waiting"  # holds no blocks; the executor does not know it
    RUNNING = "running"
    ENDED = "ended"  # its last Output is out; rows still in flight are discarded


@dataclass(slots=True)
class Beginning:
    """How a sequence comes to its first token; see ``types.EngineTiming``."""

    arrived: Seconds
    started: Seconds | None = None  # None until first scheduled
    chunks: int = 0
    preemptions: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """``num_computed`` catches up with ``tokens``: that is all there is to prefill and decode.

    ::

        tokens     p p p p p p p p o o o          prompt, then output
        computed   |------------->                planned or done; num_computed = 7
        unseen                           u        drawn by a step in flight: not in tokens yet

    Between steps a decoding sequence lacks exactly one token; with its newest token still
    unseen it lacks none, and its next row says so with ``tokens=None``.
    """

    id: SequenceId
    request: Request
    tokens: list[TokenId]
    table: BlockTable
    max_tokens: Tokens  # of prompt and output together
    beginning: Beginning | None  # None after the first token
    account: Account
    rank: int = 1  # its class, most urgent first
    latest_start: Seconds = 0.0  # when it must begin to keep its target; see order.py
    target: Seconds = float("inf")  # between its tokens, while it runs
    is_queued: bool = False  # stands in a line, neither parked nor set aside
    status: Status = Status.WAITING
    is_begun: bool = False  # the executor knows it: it had a row since it runs
    num_computed: Tokens = 0
    num_unseen: Tokens = 0
    last_step: StepId | None = None  # the last one planned with a row of this sequence
    cached_tokens: Tokens | None = None  # None until first scheduled
    needs_last_token: bool = False  # no row before its last token is known: drafts may follow it
    lookup: Lookup | None = None  # the Drafter's
    num_passed: int = 0  # how often a later request was admitted while this one did not fit
    num_setbacks: int = 0  # preemptions in a row, and nothing new computed between them
    num_known: Tokens = 0  # computed once already: computing them again is recomputation

    @property
    def yields(self) -> bool:
        """Whether it gives way to better classes in every step: the batch class does."""
        return self.rank == BATCH_RANK

    @property
    def num_missing(self) -> Tokens:
        """Known tokens that no step has computed or is computing."""
        return len(self.tokens) - self.num_computed

    @property
    def num_output(self) -> Tokens:
        """Tokens generated, by earlier attempts elsewhere too."""
        return len(self.tokens) - len(self.request.prompt) + self.request.num_prior

    def take(self, tokens: tuple[TokenId, ...]) -> tuple[tuple[TokenId, ...], FinishReason | None]:
        """Append drawn tokens, up to one that ends the output; return them, and why it ends.

        A constraint that is fulfilled may end it before ``min_tokens``.
        """
        request = self.request
        min_tokens = request.min_tokens if request.constraint is None else 0
        for index, token in enumerate(tokens):
            stops = token in request.stop_token_ids and self.num_output >= min_tokens
            self.tokens.append(token)
            if stops:
                return tokens[: index + 1], FinishReason.STOP
            if len(self.tokens) >= self.max_tokens:
                return tokens[: index + 1], FinishReason.LENGTH
        return tokens, None

    def put_back(self) -> None:
        """Take note that it lost its memory and waits again."""
        is_setback = self.num_computed <= self.num_known
        self.num_setbacks = self.num_setbacks + 1 if is_setback else 0
        self.num_known = max(self.num_known, self.num_computed)
        self.num_computed = 0
        self.status = Status.WAITING
        self.is_begun = False
        if self.beginning is not None:
            self.beginning.preemptions += 1

    def start(self) -> SequenceStart:
        """Return what an executor must know before the first row."""
        prompt = self.request.prompt  # as it is where it can be: it may be long
        num_prompt = len(prompt) - self.request.num_prior
        return SequenceStart(
            sequence=self.id,
            sampling=self.request.sampling,
            prompt=prompt[:num_prompt] if self.request.num_prior else prompt,
            output=tuple(self.tokens[num_prompt:]),
            min_tokens=self.request.min_tokens,
            stop_token_ids=self.request.stop_token_ids,
            constraint=self.request.constraint,
        )
