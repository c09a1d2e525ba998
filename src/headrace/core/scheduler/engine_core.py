"""EngineCore: the machine round the Scheduler. Requests in; steps and tokens out.

It turns events into calls of the Scheduler, draws the consequences of tokens (stop, length),
watches deadlines, gives up what is in the way (watch.py) and reports load. Effects of one event
come in the order: what is refused, what was given up, the next steps (so that the device is never
idle while tokens travel), tokens, what the prefix cache gained and lost, its whole content for who
asked, the load report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from headrace.core.costs.step_model import StepModel
from headrace.core.kvcache.cache import KVCache
from headrace.core.kvcache.lower_tiers import LowerTiers
from headrace.core.scheduler.counters import Counters
from headrace.core.scheduler.deadlines import Deadlines
from headrace.core.scheduler.door import Door
from headrace.core.scheduler.drafts import build_drafter
from headrace.core.scheduler.events import (
    Abort,
    Emit,
    Execute,
    KvChanged,
    KvSnapshot,
    Output,
    Reject,
    ReportLoad,
    SnapshotWanted,
    StepDone,
    StepFailed,
    Submit,
    TierChanged,
    TransferDone,
)
from headrace.core.scheduler.fairness import Ledger
from headrace.core.scheduler.forecast import Forecast
from headrace.core.scheduler.intake import Intake
from headrace.core.scheduler.lookahead import Lookahead
from headrace.core.scheduler.pacing import Pace
from headrace.core.scheduler.preemption import Victims
from headrace.core.scheduler.rows import Rows
from headrace.core.scheduler.scheduler import Scheduler
from headrace.core.scheduler.sequence import Sequence, Status
from headrace.core.scheduler.watch import Watch
from headrace.errors import InvariantBroken
from headrace.machine import Tick
from headrace.types import EngineTiming, FinishReason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.core.kvcache.tiers import TierConfig
    from headrace.core.scheduler.config import SchedulerConfig
    from headrace.core.scheduler.events import EngineEffect, EngineEvent
    from headrace.core.scheduler.intake import EngineSpec
    from headrace.core.scheduler.plan import Row, StepResult
    from headrace.core.scheduler.sequence import Beginning
    from headrace.core.scheduler.step import Step
    from headrace.core.scheduler.watch import Remedy
    from headrace.types import Request, RequestId, Seconds, TokenId, TokenLogprobs


class EngineCore:
    """A Machine: one model on one executor. See ``build_engine_core``."""

    def __init__(
        self,
        door: Door,
        scheduler: Scheduler,
        counters: Counters,
        watch: Watch,
        report_period: Seconds,
    ) -> None:
        self._door = door
        self.scheduler = scheduler  # for tests and journals to look at, not to call
        self._counters = counters
        self._watch = watch
        self._report_period = report_period
        self._live: dict[RequestId, Sequence] = {}
        self._deadlines = Deadlines()
        self._next_report: Seconds | None = None  # None while idle
        self._outputs: list[Output] = []  # of the event at hand
        self._num_changes = 0  # of the prefix cache, told

    def handle(self, event: EngineEvent, now: Seconds) -> list[EngineEffect]:
        """Take one event; return what should be done, in order."""
        effects: list[EngineEffect] = []
        self.scheduler.kv.evictor.advance(now)
        self.scheduler.kv.slices.work(now)
        match event:
            case StepDone(step_id, result):
                step = self.scheduler.land(step_id)
                self.scheduler.pace.learn(step.load(), result.seconds)
                self._step_done(step, result, now)
                self._give_up(self._watch.stepped(step), effects)
            case Submit(request):
                effects.extend(self._submit(request, now))
            case Abort(request_id):
                self._abort(request_id)
            case StepFailed(step_id, reason):
                self._step_failed(self.scheduler.land(step_id, failed=True), reason)
            case TierChanged() | TransferDone():
                self.scheduler.kv.tiers.note(event, now)
            case Tick() | SnapshotWanted():
                pass
            case _:
                assert_never(event)
        self._expire(now)
        self._give_up(self._watch.look(), effects)
        tiers, slices = self.scheduler.kv.tiers, self.scheduler.kv.slices
        effects.extend(tiers.fetch(now))
        self._plan(effects, now)
        effects.extend(tiers.save(now))
        if self._live and not (self.scheduler.in_flight or tiers.is_busy or slices.are_due):
            self._unblock(effects, now)
        if self._outputs:
            effects.append(Emit(tuple(self._outputs)))
            self._outputs.clear()
        self._tell_cache(effects, event)
        effects.extend(self._report(now))
        return effects

    def next_wakeup(self) -> Seconds | None:
        """Return the next deadline, slice or load report."""
        kv = self.scheduler.kv
        of_kv = kv.tiers.next_wakeup(), kv.slices.next_wakeup()
        times = (self._deadlines.next_at(), self._next_report, *of_kv)
        return min((time for time in times if time is not None), default=None)

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless queues, tables and steps in flight agree."""
        scheduler = self.scheduler
        scheduler.check_integrity()
        queued = {s.request.id for s in (*scheduler.waiting, *scheduler.running)}
        if queued != self._live.keys():
            raise InvariantBroken(f"queued {sorted(queued)} != live {sorted(self._live)}")

    def _plan(self, effects: list[EngineEffect], now: Seconds) -> None:
        while plan := self.scheduler.schedule():
            step = self.scheduler.in_flight[-1]
            if plan.starts:
                _note_starts(step, now)
            self._door.forecast.planned(now, len(plan.starts))
            effects.append(Execute(plan, step.notes))

    def _unblock(self, effects: list[EngineEffect], now: Seconds) -> None:
        """Give up what is in the way of a step."""
        self._give_up(self._watch.repair(), effects)
        self._plan(effects, now)
        slices = self.scheduler.kv.slices
        while self._live and not (self.scheduler.in_flight or slices.are_due):
            self._give_up([self._watch.blocker()], effects)
            self._plan(effects, now)

    def _give_up(self, remedies: Iterable[Remedy], effects: list[EngineEffect]) -> None:
        for incident, victims in remedies:
            effects.append(incident)
            for sequence in victims:
                self._counters.shed += 1
                self._end(sequence, FinishReason.ERROR, incident.reason)

    def _submit(self, request: Request, now: Seconds) -> list[Reject]:
        if request.id in self._live:  # M6: the same message twice
            return []
        sequence = self._door.enter(request, now)
        if isinstance(sequence, Reject):
            return [sequence]
        self._live[request.id] = sequence
        self.scheduler.add(sequence)
        if request.deadline is not None:
            self._deadlines.add(sequence, request.deadline)
        return []

    def _abort(self, request_id: RequestId) -> None:
        if sequence := self._live.get(request_id):
            self._end(sequence, FinishReason.ABORT)

    def _step_done(self, step: Step, result: StepResult, now: Seconds) -> None:
        self._counters.step_seconds += result.seconds
        more, failures = dict(result.more), dict(result.failures)
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        for index, entry in result.logprobs:
            logprobs[index] = (*logprobs.get(index, ()), entry)
        for index, (sequence, row) in enumerate(zip(step.sequences, step.rows, strict=True)):
            token = result.tokens[index]
            drawn = () if token is None else (token, *more.get(index, ()))
            if sequence.status is Status.ENDED:
                self._counters.discarded_tokens += max(row.samples, len(drawn))
                continue
            kept, finish = sequence.take(drawn)
            self._publish(sequence, row, num_drawn=len(kept))
            if not row.samples:
                continue
            sequence.num_unseen -= 1
            if not drawn:
                self._end(sequence, FinishReason.ERROR, failures.get(index, "no token was drawn"))
                continue
            if row.num_drafts:
                self._drafts_done(sequence, drawn, kept)
            self._emit(sequence, kept, finish, logprobs.get(index, ())[: len(kept)], now)

    def _publish(self, sequence: Sequence, row: Row, *, num_drawn: int) -> None:
        """Offer blocks to the prefix cache whose tokens are known, and computed by ``row`` at last.

        Behind the last token drawn nothing is: guesses there were wrong.
        """
        kv, table = self.scheduler.kv, sequence.table
        computed = row.start + row.num_tokens - row.num_drafts + max(num_drawn - 1, 0)
        if computed - table.num_published * kv.block_size >= kv.block_size:
            kv.publish(table, computed)

    def _drafts_done(
        self, sequence: Sequence, drawn: tuple[TokenId, ...], kept: tuple[TokenId, ...]
    ) -> None:
        """Book the drafts that were right: their keys and values are computed."""
        sequence.num_computed += len(kept) - 1
        self._counters.accepted_drafts += len(kept) - 1
        self._counters.discarded_tokens += len(drawn) - len(kept)

    def _step_failed(self, step: Step, reason: str) -> None:
        for sequence in step.sequences:
            if sequence.status is not Status.ENDED:
                self._end(sequence, FinishReason.ERROR, reason)

    def _emit(
        self,
        sequence: Sequence,
        tokens: tuple[TokenId, ...],
        finish: FinishReason | None,
        logprobs: tuple[TokenLogprobs, ...],
        now: Seconds,
    ) -> None:
        """Tell of tokens that a sequence took; forget it if they were its last."""
        self._counters.output_tokens += len(tokens)
        cached = sequence.cached_tokens or 0
        output = Output(sequence.request.id, tokens, finish, cached, logprobs)
        if sequence.beginning is not None:
            output = output._replace(timing=_timing(sequence.beginning, now))
            sequence.beginning = None
        self._outputs.append(output)
        if finish is not None:
            self._forget(sequence)

    def _end(self, sequence: Sequence, finish: FinishReason, reason: str = "") -> None:
        """End a sequence without a further token."""
        cached = sequence.cached_tokens or 0
        self._outputs.append(Output(sequence.request.id, (), finish, cached, reason=reason))
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._live[sequence.request.id]
        self.scheduler.end(sequence)

    def _expire(self, now: Seconds) -> None:
        """End what is past its deadline, and keep the heap free of what has ended."""
        self._deadlines.tidy(len(self._live))
        while sequence := self._deadlines.pop_due(now):
            self._end(sequence, FinishReason.DEADLINE)

    def _tell_cache(self, effects: list[EngineEffect], event: EngineEvent) -> None:
        index = self.scheduler.kv.index
        if changes := index.take_changes():
            self._num_changes += 1
            effects.append(KvChanged(self._num_changes, changes.stored, changes.removed))
        if isinstance(event, SnapshotWanted):
            effects.append(KvSnapshot(event.to, self._num_changes, index.keys()))

    def _report(self, now: Seconds) -> list[ReportLoad]:
        """Report every ``report_period`` while there is work, and once when there is none."""
        kv = self.scheduler.kv
        if not (self._live or self.scheduler.in_flight or kv.tiers.is_busy or kv.slices.are_due):
            if self._next_report is None:
                return []
            self._next_report = None
            return [self._load()]
        due = self._next_report is not None and now >= self._next_report
        if due or self._next_report is None:
            self._next_report = now + self._report_period
        return [self._load()] if due else []

    def _load(self) -> ReportLoad:
        counts, counters, scheduler = self.scheduler.kv.counts(), self._counters, self.scheduler
        eviction = scheduler.kv.evictor.figures()
        return ReportLoad(
            step=counters.steps,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            waiting_tokens=scheduler.num_waiting_tokens(),
            kv_blocks_total=counts.total,
            kv_blocks_free=counts.free,
            kv_blocks_cached=counts.cached,
            prompt_tokens_total=counters.prompt_tokens,
            cached_tokens_total=counters.cached_tokens,
            output_tokens_total=counters.output_tokens,
            discarded_tokens_total=counters.discarded_tokens,
            preemptions_total=counters.preemptions,
            step_seconds_total=counters.step_seconds,
            computed_tokens_total=counters.computed_tokens,
            recomputed_tokens_total=counters.recomputed_tokens,
            draft_tokens_total=counters.draft_tokens,
            accepted_drafts_total=counters.accepted_drafts,
            kv_blocks_pinned=eviction.pinned,
            kv_evicted_total=eviction.evicted,
            kv_regretted_total=eviction.regretted,
            tiers=scheduler.kv.tiers.figures(),
            kv_blocks_quarantined=scheduler.kv.ledger.num_quarantined,
            shed_total=counters.shed,
        )


def _note_starts(step: Step, now: Seconds) -> None:
    for sequence in step.sequences:
        if sequence.beginning is not None and sequence.beginning.started is None:
            sequence.beginning.started = now


def _timing(beginning: Beginning, now: Seconds) -> EngineTiming:
    """Return how a sequence came to the token that it got ``now``."""
    if beginning.started is None:
        raise InvariantBroken("a token for a sequence that was in no step")
    waited = beginning.started - beginning.arrived
    prefill = now - beginning.started
    return EngineTiming(waited, prefill, beginning.chunks, beginning.preemptions)


def build_engine_core(
    spec: EngineSpec, config: SchedulerConfig, tiers: TierConfig | None = None
) -> EngineCore:
    """Return the machine for an executor as ``spec`` describes it, with its lower tiers if any."""
    counters = Counters()
    kv = KVCache(
        num_blocks=spec.num_blocks,
        block_size=spec.block_size,
        share_partial=config.share_partial,
        share_waiting=config.share_waiting,
        eviction=config.eviction,
        slice_blocks=config.slice_blocks,
    )
    model = StepModel(calibration=spec.calibration)
    ledger = Ledger(capacity=spec.num_blocks * spec.block_size, fair=config.fair)
    drafter = build_drafter(config.speculation, kv, counters, model, max_drafts=config.max_drafts)
    scheduler = Scheduler(
        kv,
        counters,
        config=config,
        rows=Rows(kv, Pace(model, itl=config.itl, batch_itl=config.batch_itl), drafter, counters),
        ledger=ledger,
        victims=Victims(kv, model, config.preemption, ledger.patience, config.max_setbacks),
    )
    if tiers is not None:
        kv.tiers = LowerTiers(kv, model, Lookahead(scheduler), tiers)
    door = Door(
        intake=Intake(spec),
        scheduler=scheduler,
        ledger=ledger,
        forecast=Forecast(scheduler),
        config=config,
    )
    return EngineCore(
        door, scheduler, counters, Watch(scheduler, counters, config), config.report_period
    )
