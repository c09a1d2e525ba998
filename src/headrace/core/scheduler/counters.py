"""Counters of one engine, from its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import Seconds, Tokens


@dataclass(slots=True)
class Counters:
    """What ReportLoad tells; see there."""

    steps: int = 0
    prompt_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    computed_tokens: Tokens = 0
    recomputed_tokens: Tokens = 0  # of the computed ones, those computed before
    output_tokens: Tokens = 0
    discarded_tokens: Tokens = 0
    draft_tokens: Tokens = 0
    accepted_drafts: Tokens = 0
    preemptions: int = 0
    step_seconds: Seconds = 0.0
    shed: int = 0  # requests that ended so that others could go on

    def started(self, sequence: Sequence, *, cached: Tokens) -> None:
        """A sequence is in a step: the first time, count what ``cached`` saves it."""
        if sequence.cached_tokens is None:
            sequence.cached_tokens = cached
            self.prompt_tokens += len(sequence.request.prompt)
            self.cached_tokens += cached
