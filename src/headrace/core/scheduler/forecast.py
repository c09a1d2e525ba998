"""Forecast: when a request's first token would come, if it were let in now.

Whatever is short (time, places, memory), the queue moves at some pace: how long it takes from one
start to the next while somebody waits is measured. Where nobody waits, the work under way counts,
at the speed at which steps leave time for prompts. It decides who is told at once that what it asks
for cannot be. What comes later and goes first it does not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.costs.step_model import StepLoad
from headrace.core.scheduler.pacing import UNLIMITED

if TYPE_CHECKING:
    from headrace.core.scheduler.scheduler import Scheduler
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import Seconds, Tokens

REMEMBER = 0.95  # of the mean time between two starts, at each one
MIN_SHARE = 0.1  # of a step that prompts get, where decodes leave less


class Forecast:
    """Looks at a scheduler and changes nothing in it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._since: Seconds | None = None  # the last start, or since when somebody waits
        self._between: Seconds | None = None  # two starts while somebody waits

    def planned(self, now: Seconds, num_starts: int) -> None:
        """A step was planned that starts so many requests."""
        if num_starts and self._since is not None:
            gap, between = (now - self._since) / num_starts, self._between
            keep = REMEMBER**num_starts
            self._between = gap if between is None else keep * between + (1 - keep) * gap
        if not len(self._scheduler.waiting):
            self._since = None
        elif num_starts or self._since is None:
            self._since = now

    def first_token(self, sequence: Sequence) -> Seconds:
        """Return in how many seconds a sequence that does not wait yet would get its first."""
        scheduler = self._scheduler
        model = scheduler.pace.model
        decodes = [s for s in scheduler.running if s.num_missing <= 1]
        decoding = StepLoad(decodes=len(decodes), context=sum(s.num_computed for s in decodes))
        step = model.seconds(decoding)
        target = min((s.target for s in decodes if not s.yields), default=UNLIMITED)
        share = 1.0 if target == UNLIMITED else max(scheduler.pace.aim - step / target, MIN_SHARE)
        cached = scheduler.kv.survey.num_cached(sequence.table) * scheduler.kv.block_size
        saved = scheduler.kv.tiers.saving(sequence.table)
        own = max(0.0, model.recompute_seconds(len(sequence.tokens) - cached, cached) - saved)
        num_ahead, tokens = scheduler.waiting.ahead_of(sequence)
        before = model.recompute_seconds(tokens + self._tokens_under_way(sequence), 0) / share
        queue = num_ahead * self._between if self._between is not None and num_ahead else 0.0
        return step / 2 + model.coefficients.base + max(before, queue) + own / share

    def _tokens_under_way(self, sequence: Sequence) -> Tokens:
        """Count the prompt tokens that running sequences compute first."""
        key = (sequence.rank, sequence.latest_start)
        return sum(
            s.num_missing
            for s in self._scheduler.running
            if s.num_missing > 1 and (s.rank, s.latest_start) <= key
        )
