"""SimulatedDevice: the performer of an engine's effects in virtual time.

Steps run one after the other and take as long as the executor says; nothing waits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from headrace.core.scheduler.events import EngineEffect, Execute, StepDone

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.scheduler.plan import StepPlan, StepResult
    from headrace.types import Seconds


class RunsSteps(Protocol):
    """The part of an Executor that virtual time needs."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step at once; ``seconds`` says how long it would have taken."""
        ...


class SimulatedDevice:
    """Performs ``Execute``; leaves other effects to whoever observes the driver.

    ``now`` reads the clock that ``feed_at`` is told times of.
    """

    def __init__(
        self,
        executor: RunsSteps,
        now: Callable[[], Seconds],
        feed_at: Callable[[Seconds, StepDone], None],
    ) -> None:
        self._executor = executor
        self._now = now
        self._feed_at = feed_at
        self._free_at: Seconds = float("-inf")
        self.slowness = 1.0  # how many times as long a step takes as the executor says
        self.busy_seconds: Seconds = 0.0
        self.num_steps = 0

    def perform(self, effect: EngineEffect) -> None:
        """Run a step at once, and tell its end when it would have come."""
        if isinstance(effect, Execute):
            result = self._executor.execute(effect.plan)
            if self.slowness != 1.0:
                result = replace(result, seconds=self.slowness * result.seconds)
            self._free_at = max(self._free_at, self._now()) + result.seconds
            self.busy_seconds += result.seconds
            self.num_steps += 1
            self._feed_at(self._free_at, StepDone(effect.plan.step_id, result))
