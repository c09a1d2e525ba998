"""EngineHarness: an EngineCore and an executor in one thread, an event at a time.

For tests that decide themselves when steps end. Every event is followed by the machine's
``check_integrity()``; what every stream must satisfy is checked as its tokens arrive.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, assert_never

from headrace.core.scheduler.events import (
    Abort,
    Emit,
    Execute,
    Incident,
    KvChanged,
    KvSnapshot,
    Reject,
    ReportLoad,
    StepDone,
    StepFailed,
    Submit,
    Transfer,
)
from headrace.errors import InvariantBroken
from headrace.machine import Tick
from headrace.testing.journal import Journal
from headrace.testing.tier_store import TierStore

if TYPE_CHECKING:
    from headrace.core.scheduler.engine_core import EngineCore
    from headrace.core.scheduler.events import EngineEffect, EngineEvent, Output
    from headrace.core.scheduler.plan import StepPlan, StepResult
    from headrace.executor.base import Executor
    from headrace.types import BlockKey, FinishReason, Request, RequestId, Seconds, TokenId


class CacheFollower:
    """Knows a prefix cache by what is told of its changes. Whatever does not follow is an error."""

    def __init__(self) -> None:
        self.keys: set[BlockKey] = set()
        self.number = 0

    def take(self, change: KvChanged) -> None:
        """Carry out the next change."""
        known, stored, removed = self.keys, set(change.stored), set(change.removed)
        in_turn = change.number == self.number + 1 and (stored or removed)
        if not in_turn or known & stored or not removed <= known | stored:
            raise InvariantBroken(f"{change} after change {self.number}, with {len(known)} keys")
        self.keys = (known | stored) - removed
        self.number = change.number


class EngineHarness:
    """Feeds ``core``; runs its steps on ``executor`` at once and holds the results back.

    ``tokens`` and ``finishes`` gather what came out; ``journal`` holds everything; ``store`` is the
    lower tier, if the core has one.
    """

    def __init__(self, core: EngineCore, executor: Executor) -> None:
        self.core = core
        self.now: Seconds = 0.0
        self.tokens: dict[RequestId, list[TokenId]] = {}
        self.finishes: dict[RequestId, FinishReason] = {}
        self.outputs: dict[RequestId, list[Output]] = {}
        self.rejects: dict[RequestId, Reject] = {}
        self.follower = CacheFollower()
        self.journal: Journal[EngineEvent, EngineEffect] = Journal()
        self.store = TierStore(executor)
        self._running: deque[tuple[StepPlan, StepResult]] = deque()

    @property
    def num_in_flight(self) -> int:
        """Steps that were planned and whose end was not told yet."""
        return len(self._running)

    @property
    def plans(self) -> list[StepPlan]:
        """Every step that was planned."""
        return [effect.plan for effect in self.journal.effects if isinstance(effect, Execute)]

    @property
    def reports(self) -> list[ReportLoad]:
        """Every load report."""
        return [effect for effect in self.journal.effects if isinstance(effect, ReportLoad)]

    @property
    def incidents(self) -> list[Incident]:
        """Everything that was given up."""
        return [effect for effect in self.journal.effects if isinstance(effect, Incident)]

    def feed(self, event: EngineEvent) -> list[EngineEffect]:
        """Handle one event at ``now``, check everything, keep what came out."""
        effects = self.core.handle(event, self.now)
        self.journal.observe(event, self.now, effects)
        self.core.check_integrity()
        for effect in effects:
            self._take(effect)
        if self.follower.keys != set(self.core.scheduler.kv.index.keys()):
            raise InvariantBroken("the changes told do not add up to the prefix cache's content")
        wakeup = self.core.next_wakeup()
        if wakeup is not None and wakeup <= self.now:
            raise InvariantBroken(f"M3: woken at {wakeup}, now is {self.now}")
        return effects

    def submit(self, request: Request) -> None:
        """Feed a Submit."""
        self.feed(Submit(request))

    def abort(self, request_id: RequestId) -> None:
        """Feed an Abort."""
        self.feed(Abort(request_id))

    def finish_step(self, *, failed: str = "") -> StepPlan:
        """Let the oldest step in flight end; return its plan."""
        plan, result = self._running.popleft()
        self.now += result.seconds
        if failed:
            self.feed(StepFailed(plan.step_id, failed))
        else:
            self.feed(StepDone(plan.step_id, result))
        return plan

    def go_on(self) -> None:
        """Wait until the core goes on with what it put off."""
        self.now = max(self.now, self.core.scheduler.kv.slices.next_wakeup() or self.now)
        self.feed(Tick())

    def finish_transfer(self, index: int = 0, *, limit: int | None = None) -> None:
        """Let a pending transfer end."""
        for event in self.store.finish(index, limit=limit):
            self.feed(event)

    def run_until_idle(self, max_steps: int = 10_000) -> None:
        """Finish steps, transfers and what was put off until nothing is left to do."""
        slices = self.core.scheduler.kv.slices
        for _ in range(max_steps):
            if slices.are_due and not self._running:
                self.go_on()
            elif self.store.pending:
                self.finish_transfer()
            elif self._running:
                self.finish_step()
            else:
                return
        raise InvariantBroken(f"still busy after {max_steps} steps")

    def _take(self, effect: EngineEffect) -> None:
        match effect:
            case Execute(plan):
                self._running.append((plan, self.store.executor.execute(plan)))
            case Emit(outputs):
                for output in outputs:
                    self._receive(output)
            case Reject(request_id):
                self.rejects[request_id] = effect
            case KvChanged():
                self.follower.take(effect)
            case Transfer():
                self.store.begin(effect)
            case ReportLoad() | KvSnapshot() | Incident():
                pass
            case _:
                assert_never(effect)

    def _receive(self, output: Output) -> None:
        if output.request_id in self.finishes:
            raise InvariantBroken(f"{output} after the end of {output.request_id}")
        if output.logprobs and tuple(e.token for e in output.logprobs) != output.tokens:
            raise InvariantBroken(f"{output} has log-probabilities of other tokens")
        self.outputs.setdefault(output.request_id, []).append(output)
        self.tokens.setdefault(output.request_id, []).extend(output.tokens)
        if output.finish is not None:
            self.finishes[output.request_id] = output.finish
