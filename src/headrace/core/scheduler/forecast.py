"""Forecast: when a request's first token would come, if it were let in now.

Work before it, by the order in which requests are served, at the speed at which steps leave time
for prompts; and a place to run in, at the pace at which others have left lately. It decides who is
told at once that what it asks for cannot be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.costs.step_model import StepLoad
from headrace.core.scheduler.pacing import UNLIMITED

if TYPE_CHECKING:
    from headrace.core.scheduler.scheduler import Scheduler
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import Seconds, Tokens

REMEMBER = 0.9  # of the mean time between two departures, at each one
MIN_SHARE = 0.1  # of a step that prompts get at the least: MIN_CHUNK sees to that


class Forecast:
    """Looks at a scheduler and changes nothing in it."""

    def __init__(self, scheduler: Scheduler, max_num_seqs: int) -> None:
        self._scheduler = scheduler
        self._max_num_seqs = max_num_seqs
        self._last_departure: Seconds | None = None
        self._between: Seconds | None = None  # two departures

    def departed(self, now: Seconds, count: int) -> None:
        """So many requests have ended."""
        if self._last_departure is not None:
            gap = (now - self._last_departure) / count
            between = self._between
            self._between = gap if between is None else REMEMBER * between + (1 - REMEMBER) * gap
        self._last_departure = now

    def first_token(self, sequence: Sequence) -> Seconds:
        """Return in how many seconds a sequence that does not wait yet would get its first."""
        scheduler = self._scheduler
        model = scheduler.pace.model
        decodes = [s for s in scheduler.running if s.num_missing <= 1]
        decoding = StepLoad(decodes=len(decodes), context=sum(s.num_computed for s in decodes))
        step = model.seconds(decoding)
        target = min((s.target for s in decodes if not s.yields), default=UNLIMITED)
        share = 1.0 if target == UNLIMITED else max(1 - step / target, MIN_SHARE)
        cached = scheduler.kv.survey.num_cached(sequence.table) * scheduler.kv.block_size
        own = model.recompute_seconds(len(sequence.tokens) - cached, cached)
        before = model.recompute_seconds(self._tokens_before(sequence), 0)
        return self._place(sequence) + step / 2 + (own + before) / share + model.coefficients.base

    def _tokens_before(self, sequence: Sequence) -> Tokens:
        """Count prompt tokens that would be computed first. Cached ones are not subtracted."""
        key = (sequence.rank, sequence.latest_start)
        behind = sum(
            s.num_missing
            for s in self._scheduler.running
            if s.num_missing > 1 and (s.rank, s.latest_start) <= key
        )
        return behind + self._scheduler.waiting.before(*key)

    def _place(self, sequence: Sequence) -> Seconds:
        """Return how long until one of those who run and do not give way has left."""
        settled = [s for s in self._scheduler.running if s.rank <= sequence.rank or not s.yields]
        ahead = sum(self._scheduler.waiting.num_in(rank) for rank in range(sequence.rank + 1))
        too_many = len(settled) + ahead + 1 - self._max_num_seqs
        return max(too_many, 0) * (self._between or 0.0)
