"""Watch: notices when memory's books or the queue go wrong, and names what to give up.

* **Leaks.** After every event four sums are compared (kvcache/ledger.py); every ``audit_steps``
  steps also the tables of all who run with the ledger. What does not fit is quarantined. Requests
  whose blocks others may have written into end with an error, the rest goes on.
* **Stalls.** Requests are there, and nothing is in flight or can be planned. First the books are
  put right and those are woken who wait for content that nobody computes; if that does not help,
  the blocker is named and ends with an error, until something can be planned.
* **Livelocks.** More tokens were computed again than the cache holds, and not one that is new:
  whoever was sent back most often without getting further ends with an error. Before that,
  preemption.py spares who was sent back ``max_setbacks`` times.

It knows no time: all is counted in steps and tokens.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.scheduler.events import Incident, IncidentKind
from headrace.core.scheduler.sequence import Status
from headrace.errors import InvariantBroken
from headrace.types import StepId

if TYPE_CHECKING:
    from headrace.core.kvcache.ledger import Misfit
    from headrace.core.kvcache.table import BlockTable
    from headrace.core.scheduler.config import SchedulerConfig
    from headrace.core.scheduler.counters import Counters
    from headrace.core.scheduler.scheduler import Scheduler
    from headrace.core.scheduler.sequence import Sequence
    from headrace.core.scheduler.step import Step
    from headrace.types import Tokens

NAMED_BLOCKS = 8
"""Blocks that an incident's reason lists at most."""

LIVELOCK_CACHES = 2
"""Times the cache's tokens that may be computed again without a new one among them."""


class Remedy(NamedTuple):
    """What went wrong, and which sequences end of it."""

    incident: Incident
    victims: tuple[Sequence, ...] = ()


class WaitsFor(StrEnum):
    """What keeps a sequence from being planned."""

    BLOCKS = "free blocks"
    PLACE = "a place among those that run"
    CONTENT = "content that another computes"
    NOTHING = "nothing that is known"


class Watch:
    """Looks at a scheduler, and repairs its books."""

    def __init__(self, scheduler: Scheduler, counters: Counters, config: SchedulerConfig) -> None:
        self._scheduler = scheduler
        self._counters = counters
        self._config = config
        self._capacity: Tokens = scheduler.kv.ledger.num_usable * scheduler.kv.block_size
        self._num_again: Tokens = 0  # computed again since a token was new
        self._num_steps = 0  # since tables were compared

    def look(self) -> list[Remedy]:
        """Return what is wrong with memory's books, having put them right."""
        scheduler, kv = self._scheduler, self._scheduler.kv
        in_flight = scheduler.in_flight
        oldest = in_flight[0].id if in_flight else StepId(self._counters.steps)
        stray = kv.slices.leaving.oldest_fence < oldest
        is_left = not scheduler.running.sequences and kv.ledger.num_entries != self._num_entries()
        if kv.ledger.is_balanced and not stray and not is_left and self._adds_up():
            return []
        return self._audit()

    def stepped(self, step: Step) -> list[Remedy]:
        """Take note of a step that was run; return whom it is no use to go on with."""
        self._num_steps += 1
        if step.num_prefill > step.num_again or any(row.samples for row in step.rows):
            self._num_again = 0
            return []
        self._num_again += step.num_again
        if self._num_again <= LIVELOCK_CACHES * self._capacity:
            return []
        self._num_again = 0
        worst = max(step.sequences, key=lambda s: (s.num_setbacks, s.id))
        if worst.status is Status.ENDED:
            return []
        return [self._shed(worst, IncidentKind.LIVELOCK, "only computes again what it lost")]

    def repair(self) -> list[Remedy]:
        """Do what may help when nothing can be planned, and harms nobody."""
        self._wake()
        return self._audit()

    def blocker(self) -> Remedy:
        """Return the sequence that is in the way, and that it ends."""
        running = self._scheduler.running.sequences
        if running:
            chosen = max(running, key=lambda s: (s.rank, len(s.table.blocks), s.id))
        else:
            chosen = min(self._scheduler.waiting, key=lambda s: (s.rank, s.latest_start, s.id))
        remedy = self._shed(chosen, IncidentKind.STALL, f"waits for {self._waits_for(chosen)}")
        if not self._config.shed_stalled:
            raise InvariantBroken(f"nothing can be planned: {remedy.incident.reason}")
        return remedy

    def _adds_up(self) -> bool:
        """Compare the tables of those who run with the ledger, now and then."""
        if not self._config.audit_steps or self._num_steps < self._config.audit_steps:
            return True
        self._num_steps = 0
        self._wake()
        return self._scheduler.kv.ledger.num_entries == self._num_entries()

    def _tables(self) -> list[BlockTable]:
        """Return all tables in use, those of transfers included."""
        return [*self._scheduler.running.tables(), *self._scheduler.kv.tiers.tables()]

    def _wake(self) -> None:
        """Let all who wait for content be looked at, and nobody wait for what no one computes."""
        coming = self._scheduler.kv.coming
        coming.forget_strangers(set(self._tables()))
        coming.take_settled()
        self._scheduler.waiting.settle(None)

    def _num_entries(self) -> int:
        """Count the places in all tables, and those of blocks that leave."""
        leaving = self._scheduler.kv.slices.leaving.num_places
        return leaving + sum(len(table.blocks) for table in self._tables())

    def _audit(self) -> list[Remedy]:
        scheduler = self._scheduler
        steps = {step.id for step in scheduler.in_flight} | {StepId(self._counters.steps)}
        misfits = scheduler.kv.audit(scheduler.running.tables(), steps)
        if not misfits:
            return []
        unsafe = {misfit.block for misfit in misfits if misfit.is_unsafe}
        victims = tuple(s for s in scheduler.running if not unsafe.isdisjoint(s.table.blocks))
        return [Remedy(_quarantine(misfits, len(victims)), victims)]

    def _shed(self, sequence: Sequence, kind: IncidentKind, why: str) -> Remedy:
        num_blocks, kv = len(sequence.table.blocks), self._scheduler.kv
        reason = (
            f"the request {sequence.status.value} with {num_blocks} blocks, sent back "
            f"{sequence.num_setbacks} times without getting further, {why}; "
            f"{kv.num_free} of {kv.ledger.num_usable} blocks are free"
        )
        return Remedy(Incident(kind, reason, sequence.request.id, num_blocks), (sequence,))

    def _waits_for(self, sequence: Sequence) -> WaitsFor:
        scheduler = self._scheduler
        if scheduler.kv.survey.demand(sequence.table) >= scheduler.kv.num_free:
            return WaitsFor.BLOCKS
        if sequence.status is Status.RUNNING:
            return WaitsFor.NOTHING
        if not sequence.is_queued:
            return WaitsFor.CONTENT
        if len(scheduler.running) >= self._config.max_num_seqs:
            return WaitsFor.PLACE
        return WaitsFor.NOTHING


def _quarantine(misfits: list[Misfit], num_victims: int) -> Incident:
    blocks = ", ".join(str(misfit.block) for misfit in misfits[:NAMED_BLOCKS])
    more = ", ..." if len(misfits) > NAMED_BLOCKS else ""
    reason = (
        f"{len(misfits)} blocks were held by nobody who is known, or by too many: {blocks}{more}; "
        f"they are out of use until a restart, {num_victims} requests end of it"
    )
    return Incident(IncidentKind.QUARANTINE, reason, None, len(misfits))
