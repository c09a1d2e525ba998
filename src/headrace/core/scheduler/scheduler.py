"""Scheduler: what the next step computes. The policy is here, and nowhere else.

There is no prefill or decode phase: every sequence has ``num_computed`` catching up with its
tokens (see sequence.py). ``schedule`` fills a step under a token budget, decodes first, then
chunks of running prefills, then newcomers, each in order of arrival.

* A sequence looks into the prefix cache whenever it stands at a block's border. A newcomer waits
  while another one computes what it needs first: requests that arrive together compute their
  common prefix once. Whoever is waited for is running, so nobody waits in a circle.
* A newcomer is admitted when its whole prompt fits beside what is promised to prefills under way
  and a block of growth for everyone who runs. One that does not fit is passed by others, a
  bounded number of times; then it stands as a barrier until it fits.
* Memory for decodes comes first. If it runs short, steps in flight are waited for, and then the
  newest sequences are preempted: their blocks stay in the prefix cache as long as nobody needs
  them, so that computing them again is cheap.

It knows no time, no requests' ends and no effects: that is EngineCore's.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from operator import attrgetter
from typing import TYPE_CHECKING

from headrace.core.scheduler.plan import Row
from headrace.core.scheduler.sequence import Status
from headrace.core.scheduler.step import Step
from headrace.errors import InvariantBroken
from headrace.types import StepId

if TYPE_CHECKING:
    from headrace.core.kvcache.cache import KVCache
    from headrace.core.scheduler.counters import Counters
    from headrace.core.scheduler.plan import StepPlan
    from headrace.core.scheduler.sequence import Sequence
    from headrace.types import SequenceId, Tokens

MAX_PASSED_OVER = 16
"""Newcomers that do not fit and are looked at in one step: bounds the time a full cache costs."""

_by_arrival = attrgetter("id")


class Scheduler:
    """Waiting and running sequences, both in order of arrival, and the steps in flight."""

    def __init__(
        self,
        kv: KVCache,
        counters: Counters,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: Tokens,
        max_steps_in_flight: int,
        max_passes: int,
    ) -> None:
        self.kv = kv
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.in_flight: deque[Step] = deque()
        self._counters = counters
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_steps_in_flight = max_steps_in_flight
        self._max_passes = max_passes
        self._ends: list[SequenceId] = []  # to be told to the executor with the next step

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def end(self, sequence: Sequence) -> None:
        """Plan nothing more for a sequence; its blocks are free when its last step is done."""
        self._leave(sequence)
        sequence.status = Status.ENDED

    def schedule(self) -> StepPlan | None:
        """Plan the next step; None if there is nothing to compute or it must wait for a step."""
        if len(self.in_flight) >= self._max_steps_in_flight or not self._make_room():
            return None
        step = Step(StepId(self._counters.steps), self._max_num_batched_tokens)
        behind = self._plan_decodes(step)
        for sequence in behind:
            self._plan_chunk(step, sequence)
        if self.waiting:
            self._admit(step, spare=self.kv.num_free - self._promised(behind))
        if not step.rows:
            return None
        self._counters.steps += 1
        step.ends = tuple(self._ends)
        self._ends.clear()
        self.in_flight.append(step)
        return step.plan()

    def land(self, step_id: StepId, *, failed: bool = False) -> Step:
        """Take the oldest step out of flight and free what only waited for it."""
        if not self.in_flight or self.in_flight[0].id != step_id:
            expected = [step.id for step in self.in_flight]
            raise InvariantBroken(f"step {step_id} ended; in flight are {expected}")
        step = self.in_flight.popleft()
        self.kv.step_done(step_id)
        if failed:  # the executor may not have come to them
            self._ends = [*step.ends, *self._ends]
        else:
            self._counters.computed_tokens += step.num_prefill
        return step

    def num_waiting_tokens(self) -> Tokens:
        """Count the tokens that are missing, but for those of decodes."""
        behind = [s.num_missing for s in self.running if s.num_missing > 1]
        return sum(behind) + sum(len(s.tokens) for s in self.waiting)

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless sequences, tables and steps in flight agree."""
        self.kv.check_integrity([s.table for s in self.running])
        for sequence in self.waiting:
            if sequence.status is not Status.WAITING or sequence.num_computed:
                raise InvariantBroken(f"{sequence} is in the queue of those that wait")
        unseen = Counter(
            sequence.id
            for step in self.in_flight
            for sequence, row in zip(step.sequences, step.rows, strict=True)
            if row.samples
        )
        for sequence in self.running:
            capacity = len(sequence.table.blocks) * self.kv.block_size
            if sequence.status is not Status.RUNNING or sequence.num_computed > capacity:
                raise InvariantBroken(f"{sequence} runs with blocks for {capacity} tokens")
            if sequence.num_unseen != unseen[sequence.id]:
                raise InvariantBroken(f"{sequence}: {unseen[sequence.id]} samples in flight")
        for queue in (self.waiting, self.running):
            if queue != sorted(queue, key=_by_arrival):
                raise InvariantBroken(f"not in order of arrival: {[s.id for s in queue]}")
        if not self.in_flight and self.kv.counts().in_flight:
            raise InvariantBroken("blocks are in flight, but no step is")

    def _make_room(self) -> bool:
        """See to it that every decode gets the block it needs; False: a step must end first."""
        while len(self.running) > self.kv.num_free and self._num_growing() > self.kv.num_free:
            if self.in_flight:
                return False
            self._preempt(self.running[-1])
        return True

    def _num_growing(self) -> int:
        """Count the decodes whose next token begins a new block."""
        block_size = self.kv.block_size
        return sum(
            1
            for s in self.running
            if s.num_missing <= 1
            and s.num_computed == len(s.table.blocks) * block_size
            and len(s.tokens) + s.num_unseen < s.max_tokens
        )

    def _plan_decodes(self, step: Step) -> list[Sequence]:
        """Plan the sequences that lack one token; return those that lack more.

        The budget holds a token for each running sequence. One whose last token is on its way
        is left out: a step beyond max_tokens would be for nothing.
        """
        behind: list[Sequence] = []
        kv, rows, block_size, step_id = self.kv, step.rows, self.kv.block_size, step.id
        for sequence in self.running:
            tokens, start, table = sequence.tokens, sequence.num_computed, sequence.table
            length = len(tokens)
            if length - start > 1:
                behind.append(sequence)
                continue
            if length + sequence.num_unseen >= sequence.max_tokens:
                continue
            if start == len(table.blocks) * block_size and not kv.grow(table, start + 1):
                raise InvariantBroken(f"no block for sequence {sequence.id}, room was made")
            known = (tokens[-1],) if length > start else None
            rows.append(Row(sequence.id, start, known, table.blocks, True))
            step.sequences.append(sequence)
            sequence.num_computed = start + 1
            sequence.num_unseen += 1
            sequence.last_step = step_id
        step.budget -= len(rows)
        return behind

    def _plan_chunk(self, step: Step, sequence: Sequence) -> None:
        """Plan as many missing tokens as budget and free blocks allow."""
        if not step.budget:
            return
        kv, table = self.kv, sequence.table
        if sequence.num_computed == len(table.blocks) * kv.block_size:
            sequence.num_computed += kv.take_cached(table)
            if hit := kv.copy_cached(table, step.id):
                step.copies.append((hit.source, hit.target))
                sequence.num_computed += hit.num_tokens
        start, end = sequence.num_computed, self._chunk_end(sequence, step.budget)
        if end == start or not kv.grow(table, end):
            return
        samples = end == len(sequence.tokens)
        tokens = tuple(sequence.tokens[start:end])
        step.rows.append(Row(sequence.id, start, tokens, table.blocks, samples))
        step.sequences.append(sequence)
        step.budget -= end - start
        step.num_prefill += end - start
        if sequence.beginning is not None:
            sequence.beginning.chunks += 1
        sequence.num_computed = end
        sequence.num_unseen += samples
        sequence.last_step = step.id

    def _chunk_end(self, sequence: Sequence, budget: Tokens) -> Tokens:
        """Return where a chunk ends: at a block's border, if it cannot be the prompt's end."""
        block_size, start = self.kv.block_size, sequence.num_computed
        room = (len(sequence.table.blocks) + self.kv.num_free) * block_size
        end = min(len(sequence.tokens), start + budget, room)
        border = end - end % block_size
        return border if start < border and end < len(sequence.tokens) else end

    def _promised(self, behind: list[Sequence]) -> int:
        """Count the blocks that prefills under way lack, and one to grow for all who run."""
        lacking = sum(self.kv.blocks_for(len(s.tokens)) - len(s.table.blocks) for s in behind)
        return lacking + len(self.running)

    def _admit(self, step: Step, spare: int) -> None:
        """Start waiting sequences in order of arrival, past a few that do not fit.

        ``spare`` blocks are promised to nobody. Every newcomer takes those that its prompt
        demands and one to grow.
        """
        passed_over: list[Sequence] = []
        num_running = len(self.running)
        for sequence in self.waiting:
            if spare <= 0 or not step.budget or len(self.running) >= self._max_num_seqs:
                break
            if self.kv.is_coming(sequence.table):
                continue
            demand = self.kv.demand(sequence.table)
            if demand > spare:
                passed_over.append(sequence)
                if sequence.num_passed >= self._max_passes or len(passed_over) > MAX_PASSED_OVER:
                    break
                continue
            self._start(step, sequence)
            spare -= demand + 1
            for other in passed_over:
                other.num_passed += 1
        if len(self.running) > num_running:
            self.waiting = [s for s in self.waiting if s.status is Status.WAITING]

    def _start(self, step: Step, sequence: Sequence) -> None:
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_by_arrival)
        step.starts.append(sequence.start())
        self._plan_chunk(step, sequence)
        if step.sequences[-1] is not sequence:
            raise InvariantBroken(f"sequence {sequence.id} was admitted and found no room")
        if sequence.cached_tokens is None:
            sequence.cached_tokens = step.rows[-1].start
            self._counters.prompt_tokens += len(sequence.request.prompt)
            self._counters.cached_tokens += sequence.cached_tokens

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence without rows in flight back to its place in the queue."""
        self._leave(sequence)
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        if sequence.beginning is not None:
            sequence.beginning.preemptions += 1
        insort(self.waiting, sequence, key=_by_arrival)
        self._counters.preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._ends.append(sequence.id)
        last = sequence.last_step
        touched = self.in_flight and last is not None and last >= self.in_flight[0].id
        self.kv.release(sequence.table, after=last if touched else None)
