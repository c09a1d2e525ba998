"""Rehearsal: an EngineCore and an executor in virtual time, with requests that come when they come.

For tests and comparisons of policies: what each request got, and when. Nothing is checked after
every event (EngineHarness does that), so that thousands of steps take seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.scheduler.events import Emit, Execute, Reject, ReportLoad, StepDone, Submit
from headrace.machine import Tick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.core.scheduler.engine_core import EngineCore
    from headrace.core.scheduler.events import EngineEffect
    from headrace.core.scheduler.plan import StepPlan
    from headrace.executor.base import Executor
    from headrace.types import FinishReason, Request, RequestId, Seconds


@dataclass(slots=True)
class Story:
    """What became of one request."""

    request: Request
    arrived: Seconds
    times: list[Seconds] = field(default_factory=list)  # of each token
    finish: FinishReason | None = None
    reject: Reject | None = None

    @property
    def ttft(self) -> Seconds:
        """From its arrival to its first token; infinite if there was none."""
        return self.times[0] - self.arrived if self.times else float("inf")

    @property
    def gaps(self) -> list[Seconds]:
        """Between its tokens."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


class Rehearsal:
    """Feeds ``core`` with arrivals, runs its steps on ``executor`` in virtual time.

    ``watch`` is called after every event that planned a step.
    """

    def __init__(
        self,
        core: EngineCore,
        executor: Executor,
        *,
        watch: Callable[[Seconds, StepPlan], None] = lambda _now, _plan: None,
    ) -> None:
        self.core = core
        self.now: Seconds = 0.0
        self.stories: dict[RequestId, Story] = {}
        self.report: ReportLoad | None = None
        self._executor = executor
        self._watch = watch
        self._steps: deque[tuple[Seconds, StepDone]] = deque()  # when each ends
        self._free_at: Seconds = 0.0

    def play(
        self, arrivals: Iterable[tuple[Seconds, Request]], until: Seconds = float("inf")
    ) -> dict[RequestId, Story]:
        """Let requests come, ordered by time, and go on until all ended or time is up."""
        coming = deque(arrivals)
        while True:
            step_at = self._steps[0][0] if self._steps else float("inf")
            next_at = coming[0][0] if coming else float("inf")
            wakeup = self.core.next_wakeup()
            woken_at = float("inf") if wakeup is None else wakeup
            at = min(step_at, next_at, woken_at)
            if at >= until or (step_at == next_at == float("inf")):
                return self.stories
            self.now = max(self.now, at)
            if step_at <= self.now:
                self._take(self.core.handle(self._steps.popleft()[1], self.now))
            elif next_at <= self.now:
                request = coming.popleft()[1]
                self.stories[request.id] = Story(request, self.now)
                self._take(self.core.handle(Submit(request), self.now))
            else:
                self._take(self.core.handle(Tick(), self.now))

    def _take(self, effects: Iterable[EngineEffect]) -> None:
        for effect in effects:
            match effect:
                case Execute(plan):
                    result = self._executor.execute(plan)
                    self._free_at = max(self.now, self._free_at) + result.seconds
                    self._steps.append((self._free_at, StepDone(plan.step_id, result)))
                    self._watch(self.now, plan)
                case Emit(outputs):
                    for output in outputs:
                        story = self.stories[output.request_id]
                        story.times.extend([self.now] * len(output.tokens))
                        story.finish = output.finish
                case Reject(request_id):
                    self.stories[request_id].reject = effect
                case ReportLoad():
                    self.report = effect
                case _:
                    pass


def forget_preempted(core: EngineCore, forgotten: set[tuple[int, int]]) -> None:
    """Let preempted sequences that wait find nothing cached of what they had computed.

    What engines pay that recompute all of a preempted sequence: a baseline for comparisons.
    ``forgotten`` remembers who was made to forget.
    """
    for sequence in core.scheduler.waiting:
        key = (sequence.id, sequence.num_known)
        if sequence.num_known and key not in forgotten:
            forgotten.add(key)
            table = sequence.table
            table.chain.clear()
            table.root, table.awaits, table.num_found = b"%d/%d" % key, b"", 0
