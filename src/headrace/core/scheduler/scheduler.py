"""Scheduler: what the next step computes.

There is no prefill or decode phase: every sequence has ``num_computed`` catching up with its
tokens (see sequence.py). ``schedule`` fills a step: decodes first, then, class by class, chunks of
prompts and newcomers in the order of order.py, as many as keep every inter-token target
(pacing.py). The batch class gets what is left: it decodes only in steps that hold no better
class's prompt, and gives up its place to better newcomers.

* A sequence looks into the prefix cache whenever it stands at a block's border. A newcomer is
  parked while another one computes what it needs first: requests that arrive together compute
  their common prefix once. Whoever is waited for is running, so nobody waits in a circle.
* A newcomer is admitted when its whole prompt fits beside what is promised to prefills under way
  and room to grow for everyone who runs. One that does not fit is passed by others, a bounded
  number of times; then it stands as a barrier until it fits.
* Memory for decodes comes first. If it runs short, steps in flight are waited for, and then
  sequences are preempted (preemption.py).

It knows no time, no requests' ends and no effects: that is EngineCore's.
"""

from __future__ import annotations

from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING

from headrace.core.scheduler.notes import notes_of
from headrace.core.scheduler.order import BATCH_RANK
from headrace.core.scheduler.pacing import UNLIMITED
from headrace.core.scheduler.queue import WaitingQueue
from headrace.core.scheduler.running import Running
from headrace.core.scheduler.sequence import Status
from headrace.core.scheduler.step import Step
from headrace.errors import InvariantBroken
from headrace.types import StepId

if TYPE_CHECKING:
    from headrace.core.kvcache.cache import KVCache
    from headrace.core.scheduler.config import SchedulerConfig
    from headrace.core.scheduler.counters import Counters
    from headrace.core.scheduler.fairness import Ledger
    from headrace.core.scheduler.pacing import Pace
    from headrace.core.scheduler.plan import StepPlan
    from headrace.core.scheduler.preemption import Victims
    from headrace.core.scheduler.rows import Rows
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import Seconds

MAX_PASSED_OVER = 16
"""Newcomers that do not fit and are looked at in one step: bounds the time a full cache costs."""

_by_start = attrgetter("latest_start", "id")
_by_last_step = attrgetter("last_step", "id")


class Scheduler:
    """Waiting and running sequences, the latter in order of arrival, and the steps in flight."""

    def __init__(
        self,
        kv: KVCache,
        counters: Counters,
        *,
        config: SchedulerConfig,
        rows: Rows,
        ledger: Ledger,
        victims: Victims,
    ) -> None:
        self.kv = kv
        self.waiting = WaitingQueue(kv.evictor)
        self.running = Running(kv)
        self.in_flight: deque[Step] = deque()
        self._rows = rows
        self._counters = counters
        self._config = config
        self._ledger = ledger
        self._victims = victims

    @property
    def pace(self) -> Pace:
        """How steps are sized."""
        return self._rows.pace

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.add(sequence)

    def end(self, sequence: Sequence) -> None:
        """Plan nothing more for a sequence; its blocks are free when its last step is done."""
        self._leave(sequence)
        sequence.status = Status.ENDED
        self._ledger.leave(sequence.account)

    def schedule(self) -> StepPlan | None:
        """Plan the next step; None if there is nothing to compute or it must wait for a step."""
        most = 1 if self._victims.are_awaited else self._config.max_steps_in_flight
        if len(self.in_flight) >= most or not self._make_room():
            return None
        self._victims.are_awaited = False
        self.waiting.settle(self.kv.coming.take_settled())
        step = Step(StepId(self._counters.steps), self._config.max_num_batched_tokens)
        behind, yielding, target = self._plan_decodes(step)
        self.pace.begin(step, target)
        self._rows.add_drafts(step)
        step.spare = self.running.num_spare(behind, self._victims.headroom)
        for rank in self._ledger.patience.ranks():
            if rank == BATCH_RANK:
                if step.num_prefill and not self._ledger.patience.has_turn(rank):
                    continue
                self._plan_yielding(step, yielding)
            self._fill(step, rank, [s for s in behind if s.rank == rank])
        self.waiting.put_back(step.set_aside)
        if not step.rows and not step.copies:
            return None
        return self._take_off(step)

    def land(self, step_id: StepId, *, failed: bool = False) -> Step:
        """Take the oldest step out of flight and free what only waited for it."""
        if not self.in_flight or self.in_flight[0].id != step_id:
            expected = [step.id for step in self.in_flight]
            raise InvariantBroken(f"step {step_id} ended; in flight are {expected}")
        step = self.in_flight.popleft()
        self.kv.step_done(step_id)
        if failed:  # the executor may not have come to them
            self.running.ends = [*step.ends, *self.running.ends]
        else:
            self._counters.computed_tokens += step.num_prefill
            self._counters.recomputed_tokens += step.num_again
        return step

    def num_waiting_tokens(self) -> int:
        """Count the tokens that are missing, but for those of decodes."""
        return self.waiting.num_tokens + self.running.num_missing()

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless sequences, tables and steps in flight agree."""
        self.kv.check_integrity(self.running.tables())
        self.waiting.check_integrity()
        if any(sequence.num_computed for sequence in self.waiting):
            raise InvariantBroken("a sequence that waits has computed tokens")
        self.running.check_integrity(self.in_flight)
        if not self.in_flight and self.kv.slices.leaving.oldest_fence < UNLIMITED:
            raise InvariantBroken("blocks wait for a step, but none is in flight")

    def _take_off(self, step: Step) -> StepPlan:
        """Send a step off, and charge everybody for it."""
        self._counters.steps += 1
        step.ends, step.preempted = self.running.take_left()
        step.notes = notes_of(step, has_places=len(self.running) < self._config.max_num_seqs)
        self._ledger.charge_step(step, self.pace.model, self.running, self.waiting.by_rank)
        self._victims.headroom.stepped()
        self.in_flight.append(step)
        return step.plan()

    def _make_room(self) -> bool:
        """See to it that every decode gets the block it needs; False: a step must end first."""
        running, kv = self.running, self.kv
        if len(running) <= kv.num_free:
            return True
        growing, victims = running.growing(), self._victims.in_turn(running)
        while (lacking := len(growing) - kv.num_free) > 0:
            if kv.slices.regain(lacking):
                continue
            if self.in_flight:
                return False
            victim = next(victims)
            growing.discard(victim.id)
            self._preempt(victim)
            self._victims.headroom.preempted()
        return True

    def _plan_decodes(self, step: Step) -> tuple[list[Sequence], list[Sequence], Seconds]:
        """Plan the sequences that lack one token.

        Return those that lack more, in the order in which they should start; those that would
        decode but give way to others; and the tightest inter-token target of those planned. One
        whose last token is on its way is left out: a step beyond max_tokens would be for nothing.
        """
        behind: list[Sequence] = []
        yielding: list[Sequence] = []
        target, context = UNLIMITED, 0
        for sequence in self.running:
            length, unseen = len(sequence.tokens), sequence.num_unseen
            if length - sequence.num_computed > 1 or not sequence.is_begun:
                behind.append(sequence)
            elif length + unseen >= sequence.max_tokens or (unseen and sequence.needs_last_token):
                continue
            elif sequence.yields:
                yielding.append(sequence)
            else:
                if sequence.target < target:
                    target = sequence.target
                context += sequence.num_computed
                self._rows.decode(step, sequence)
        step.num_decodes = len(step.rows)
        step.budget -= len(step.rows)
        step.context = context
        behind.sort(key=_by_start)
        return behind, yielding, target

    def _plan_yielding(self, step: Step, yielding: list[Sequence]) -> None:
        """Plan decodes of the batch class as far as time is left, those first that waited most."""
        if not yielding:
            return
        if not step.rows or self._ledger.patience.has_turn(BATCH_RANK):
            self.pace.begin(step, min(s.target for s in yielding))
        yielding.sort(key=_by_last_step)
        for sequence in yielding:
            if sequence.status is Status.RUNNING:  # not preempted for a newcomer
                self._rows.decode_if_there_is_time(step, sequence)

    def _fill(self, step: Step, rank: int, behind: list[Sequence]) -> None:
        """Plan chunks of one class: of prompts under way and of newcomers, as they should start."""
        for sequence in behind:
            self._admit(step, rank, before=sequence.latest_start)
            if sequence.status is Status.RUNNING:
                self._rows.chunk(step, sequence)
        self._admit(step, rank, before=UNLIMITED)

    def _admit(self, step: Step, rank: int, *, before: Seconds) -> None:
        """Start newcomers of one class that must start ``before``, past a few that do not fit.

        ``step.spare`` blocks are promised to nobody. Every newcomer takes what its prompt demands
        and one to grow; by slices, all that it lacks: who holds them may let them go meanwhile.
        """
        waiting = self.waiting
        while step.budget and rank < step.barrier:
            sequence = waiting.first(rank)
            if sequence is None or sequence.latest_start >= before:
                return
            if not self._rows.may_begin(step, sequence):
                return
            if self.kv.coming.awaits(sequence.table):
                waiting.park(sequence, sequence.table.awaits)
                step.parked.append(sequence.id)
                continue
            taken = self._fits(step, sequence) or self._clear(step, sequence)
            is_full = len(self.running) >= self._config.max_num_seqs
            if not taken and (is_full or step.spare <= 0):
                return
            waiting.set_aside(sequence)
            if taken and self._start(step, sequence):
                step.spare -= max(taken, self.kv.num_lacking(sequence.table)) + 1
            else:
                step.pass_over(sequence, MAX_PASSED_OVER, self._config.max_passes)

    def _fits(self, step: Step, sequence: Sequence) -> int:
        """Return how many blocks a newcomer takes, if it may run; else 0."""
        if len(self.running) >= self._config.max_num_seqs:
            return 0
        survey, table = self.kv.survey, sequence.table
        while freed := self.kv.slices.regain(survey.demand(table) - step.spare):
            step.spare += freed  # and what it would have shared with who leaves is free now
        demand = survey.demand(table)
        return demand if demand <= step.spare else 0

    def _clear(self, step: Step, newcomer: Sequence) -> int:
        """Preempt sequences that yield until a better newcomer fits; nobody if it would not."""
        if newcomer.yields or self._ledger.patience.has_turn(BATCH_RANK):
            return 0
        yielding = self._victims.yielding(self.running, step)
        if not yielding or not self._victims.suffice(yielding, newcomer, step.spare):
            return 0
        if self.in_flight:
            self._victims.are_awaited = True
            return 0
        for victim in self._victims.in_turn(yielding):
            self._preempt(victim)
            step.spare = self.running.num_spare(self.running.behind(), self._victims.headroom)
            if taken := self._fits(step, newcomer):
                return taken
        return 0

    def _start(self, step: Step, sequence: Sequence) -> bool:
        """Let a newcomer run; False if it finds no time, or blocks that it counted on have gone."""
        num_copies = len(step.copies)
        sequence.target = self.pace.target(sequence.request.itl, yields=sequence.yields)
        self.running.add(sequence)
        self._rows.chunk(step, sequence, least=1)
        if not (sequence.is_begun or sequence.table.num_taken):
            del step.copies[num_copies:]
            self.running.take_back(sequence)
            return False
        self.waiting.remove(sequence)
        self._ledger.serve(sequence.account)
        for other in step.set_aside:
            other.num_passed += 1
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence without rows in flight back to its place in the queue."""
        self._leave(sequence)
        sequence.put_back()
        self.waiting.add(sequence)
        self.waiting.settle(self.kv.coming.take_settled())  # nobody waits for what it computed
        self._counters.preemptions += 1
        self.running.preempted.append(sequence.id)

    def _leave(self, sequence: Sequence) -> None:
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
            return
        last = sequence.last_step
        touched = self.in_flight and last is not None and last >= self.in_flight[0].id
        self.running.remove(sequence, after=last if touched else None)
