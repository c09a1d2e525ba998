"""The one thread in which an executor lives: built, called and closed there.

Plans go in through a queue; what becomes of them comes back on the event loop. The thread finds
the next plan ready when it has finished one, so the device waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING

from headrace.core.scheduler.events import StepDone, StepFailed
from headrace.errors import ExecutorFault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from headrace.clock import Clock
    from headrace.core.scheduler.plan import StepPlan, StepResult
    from headrace.executor.base import Executor, ExecutorSpec
    from headrace.types import BlockId, Seconds

_POLL_SECONDS = 5.0
"""No wait of the thread is longer, so that it ends even if nobody stopped it."""

_JOIN_SECONDS = 3.0
"""A thread that still computes then is left to die with the process."""

_log = logging.getLogger(__name__)


class ExecutorThread:
    """Runs plans in order. ``finished`` is called on the loop that called ``start``."""

    def __init__(self, *, finished: Callable[[StepDone | StepFailed], None], clock: Clock) -> None:
        self._finished = finished
        self._clock = clock
        self._plans: queue.SimpleQueue[StepPlan | None] = queue.SimpleQueue()  # bounded by the core
        self._begun: deque[Seconds] = deque()  # when each step in flight became the thread's
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._executor: Executor | None = None

    @property
    def executor(self) -> Executor:
        """Once it has started: for its spec and its blocks, which other threads may copy."""
        assert self._executor is not None
        return self._executor

    async def start(self, build: Callable[[], Executor]) -> ExecutorSpec:
        """Build the executor in the thread; raise what ``build`` raises."""
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[ExecutorSpec] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(self._loop, build, ready), name="executor", daemon=True
        )
        self._thread.start()
        return await ready

    def submit(self, plan: StepPlan) -> None:
        """Hand over the next step."""
        self._begun.append(self._clock.now())
        self._plans.put(plan)

    def busy_seconds(self) -> Seconds:
        """How long the oldest step in flight has been; 0 if there is none."""
        return self._clock.now() - self._begun[0] if self._begun else 0.0

    async def stop(self) -> None:
        """End the thread; give up on one that hangs in a native call (it dies with us)."""
        self._plans.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _JOIN_SECONDS)

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        build: Callable[[], Executor],
        ready: asyncio.Future[ExecutorSpec],
    ) -> None:
        try:
            executor = build()
        except BaseException as error:  # whoever awaits `start` handles it
            _call(loop, _fail, ready, error)
            return
        self._executor = executor
        _call(loop, _resolve, ready, executor.spec)
        try:
            while (plan := self._next_plan(loop)) is not None:
                _call(loop, self._landed, _execute(executor, plan))
        finally:
            executor.close()

    def _next_plan(self, loop: asyncio.AbstractEventLoop) -> StepPlan | None:
        """Wait for a plan; None when all is to end."""
        while not loop.is_closed():
            with contextlib.suppress(queue.Empty):
                return self._plans.get(timeout=_POLL_SECONDS)
        return None

    def _landed(self, outcome: StepDone | StepFailed) -> None:
        self._begun.popleft()
        if self._begun:
            self._begun[0] = self._clock.now()  # only now is it the next one's turn
        self._finished(outcome)


def _execute(executor: Executor, plan: StepPlan) -> StepDone | StepFailed:
    """Run one step; a fault costs the requests of this step, not the process."""
    try:
        return StepDone(plan.step_id, executor.execute(plan))
    except ExecutorFault as fault:
        _log.error("step %d failed: %s", plan.step_id, fault)
        return StepFailed(plan.step_id, str(fault))
    except Exception:  # a bug; the outermost boundary round a step
        _log.exception("step %d failed", plan.step_id)
        return StepFailed(plan.step_id, "internal error in the executor")


def _call(
    loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
        loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: asyncio.Future[ExecutorSpec], spec: ExecutorSpec) -> None:
    if not future.done():
        future.set_result(spec)


def _fail(future: asyncio.Future[ExecutorSpec], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


class PacedExecutor:
    """Implements Executor: spends the time that another executor only reports.

    ``speed`` multiplies it. ``wait`` blocks for so many seconds (or less, when all is to end).
    """

    def __init__(
        self, executor: Executor, *, speed: float, wait: Callable[[Seconds], object]
    ) -> None:
        self._executor = executor
        self._speed = speed
        self._wait = wait

    @property
    def spec(self) -> ExecutorSpec:
        """See Executor."""
        return self._executor.spec

    def execute(self, plan: StepPlan) -> StepResult:
        """See Executor."""
        result = self._executor.execute(plan)
        self._wait(result.seconds * self._speed)
        return result

    def read_blocks(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        """See Executor."""
        return self._executor.read_blocks(blocks)

    def write_blocks(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        """See Executor."""
        self._executor.write_blocks(blocks, content)

    def close(self) -> None:
        """See Executor."""
        self._executor.close()
