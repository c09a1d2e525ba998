"""Door: a request becomes a sequence, or is told at once why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.scheduler.events import Reject
from headrace.core.scheduler.order import latest_start, rank_of
from headrace.errors import DeadlineInfeasible, Overloaded
from headrace.types import SequenceId

if TYPE_CHECKING:
    from headrace.core.scheduler.config import SchedulerConfig
    from headrace.core.scheduler.fairness import Ledger
    from headrace.core.scheduler.forecast import Forecast
    from headrace.core.scheduler.intake import Intake
    from headrace.core.scheduler.scheduler import Scheduler
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import Request, Seconds

SURE_AFTER = 8
"""Steps that the step-time model must have seen before anybody is refused by its word."""

LEAST_WAIT: Seconds = 1.0


class Door:
    """Checks what can never be served, what there is no room for, and what would come too late."""

    def __init__(
        self,
        *,
        intake: Intake,
        scheduler: Scheduler,
        ledger: Ledger,
        forecast: Forecast,
        config: SchedulerConfig,
    ) -> None:
        self.forecast = forecast
        self._intake = intake
        self._scheduler = scheduler
        self._ledger = ledger
        self._config = config
        self._num_sequences = 0

    def enter(self, request: Request, now: Seconds) -> Sequence | Reject:
        """Return the sequence of a request that comes ``now``, or why there is none."""
        if refusal := self._intake.refusal(request):
            return refusal
        kv = self._scheduler.kv
        if kv.blocks_for(len(request.prompt) + 1) > kv.ledger.num_usable:
            reason = (
                f"{kv.ledger.num_usable} blocks of the KV cache are in use order: ask elsewhere"
            )
            return Reject(request.id, Overloaded.code, reason)
        if len(self._scheduler.waiting) >= self._config.max_num_waiting:
            reason = f"{self._config.max_num_waiting} requests are waiting; try again later"
            return Reject(request.id, Overloaded.code, reason)
        rank = rank_of(request, self._config.order)
        account = self._ledger.enter(request.tenant, request.weight, rank)
        number = SequenceId(self._num_sequences)
        sequence = self._intake.sequence(request, number, account, now)
        self._place(sequence, rank, now)
        if too_late := self._too_late(sequence, now):
            self._ledger.leave(account)
            return too_late
        self._num_sequences += 1
        return sequence

    def _place(self, sequence: Sequence, rank: int, now: Seconds) -> None:
        """Find the place of a sequence among those that wait."""
        request, order, kv = sequence.request, self._config.order, self._scheduler.kv
        sequence.rank = sequence.table.urgency = rank
        cached = kv.survey.num_cached(sequence.table) * kv.block_size
        model = self._scheduler.pace.model
        work = model.recompute_seconds(len(sequence.tokens) - cached, cached)
        sequence.latest_start = latest_start(request, order, now=now, work=work)

    def _too_late(self, sequence: Sequence, now: Seconds) -> Reject | None:
        """Refuse what asks for its first token sooner than it can come.

        A deadline alone asks for nothing: it may be no more than a server's longest patience.
        """
        request, model = sequence.request, self._scheduler.pace.model
        wanted = request.first_token_by
        if not self._config.refuse_late or wanted is None or model.num_observations < SURE_AFTER:
            return None
        predicted = self.forecast.first_token(sequence)
        late = now + predicted - wanted
        if late <= 0:
            return None
        asked = max(wanted - now, 0.0)
        reason = (
            f"the first token would come in about {predicted:.2f} s, and is wanted in "
            f"{asked:.2f} s; ask again later, or for less"
        )
        return Reject(request.id, DeadlineInfeasible.code, reason, max(late, LEAST_WAIT))
