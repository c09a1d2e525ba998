"""Step: a plan in the making, and what stays behind of it while the executor runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.costs.step_model import StepLoad
from headrace.core.scheduler.notes import NO_NOTES, StepNotes
from headrace.core.scheduler.order import NUM_RANKS
from headrace.core.scheduler.plan import StepPlan

if TYPE_CHECKING:
    from headrace.core.scheduler.plan import Row, SequenceStart
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import BlockId, Seconds, SequenceId, StepId, Tokens


@dataclass(slots=True, eq=False)
class Step:
    """``sequences[i]`` is whose ``rows[i]`` is; ``budget`` counts the tokens that may be added, and
    ``seconds`` the time.

    ``num_prefill`` of its tokens are those of chunks, ``num_again`` of those had been computed
    before. What it computes is counted as in ``StepLoad``.
    """

    id: StepId
    budget: Tokens
    seconds: Seconds = float("inf")
    num_prefill: Tokens = 0
    num_again: Tokens = 0
    num_pairs: int = 0
    num_decodes: int = 0
    context: Tokens = 0
    spare: int = 0  # blocks that are promised to nobody
    barrier: int = NUM_RANKS  # newcomers of this class and worse wait: one was passed too often
    spent: list[Seconds] = field(default_factory=lambda: [0.0] * NUM_RANKS)  # by class
    set_aside: list[Sequence] = field(default_factory=list)  # newcomers that did not fit
    sequences: list[Sequence] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[BlockId, BlockId]] = field(default_factory=list)
    starts: list[SequenceStart] = field(default_factory=list)
    ends: tuple[SequenceId, ...] = ()
    parked: list[SequenceId] = field(default_factory=list)
    preempted: tuple[SequenceId, ...] = ()
    notes: StepNotes = NO_NOTES

    def pass_over(self, sequence: Sequence, max_sequences: int, max_passes: int) -> None:
        """Leave out a newcomer that does not fit; the last one that may be is a barrier."""
        self.set_aside.append(sequence)
        if sequence.num_passed >= max_passes or len(self.set_aside) > max_sequences:
            self.barrier = min(self.barrier, sequence.rank)

    def load(self) -> StepLoad:
        """Return what the step-time model wants to know."""
        return StepLoad(self.num_prefill, self.num_decodes, self.context, self.num_pairs)

    def plan(self) -> StepPlan:
        """Return the frozen plan for the executor."""
        return StepPlan(
            step_id=self.id,
            rows=tuple(self.rows),
            copies=tuple(self.copies),
            starts=tuple(self.starts),
            ends=self.ends,
        )
