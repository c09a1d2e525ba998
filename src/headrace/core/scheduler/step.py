"""Step: a plan in the making, and what stays behind of it while the executor runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.scheduler.plan import StepPlan

if TYPE_CHECKING:
    from headrace.core.scheduler.plan import Row, SequenceStart
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import BlockId, SequenceId, StepId, Tokens


@dataclass(slots=True, eq=False)
class Step:
    """``sequences[i]`` is whose ``rows[i]`` is; ``budget`` counts the tokens that may be added.

    ``num_prefill`` of its tokens are those of chunks.
    """

    id: StepId
    budget: Tokens
    num_prefill: Tokens = 0
    sequences: list[Sequence] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[BlockId, BlockId]] = field(default_factory=list)
    starts: list[SequenceStart] = field(default_factory=list)
    ends: tuple[SequenceId, ...] = ()

    def plan(self) -> StepPlan:
        """Return the frozen plan for the executor."""
        return StepPlan(
            step_id=self.id,
            rows=tuple(self.rows),
            copies=tuple(self.copies),
            starts=tuple(self.starts),
            ends=self.ends,
        )
