"""The executor's thread: order, faults, and its end."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from headrace.clock import MonotonicClock
from headrace.core.scheduler.events import StepDone, StepFailed
from headrace.core.scheduler.plan import Row, StepPlan, StepResult
from headrace.errors import ExecutorFault, ModelTooLarge
from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SimulatedExecutor, StepTime
from headrace.server.executor_thread import ExecutorThread, PacedExecutor
from headrace.testing.async_test import async_test
from headrace.types import SequenceId, StepId

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = ExecutorSpec(
    model_identity="m",
    vocab_size=100,
    max_model_len=64,
    block_size=4,
    num_blocks=16,
    block_bytes=0,
)


def plan(step: int) -> StepPlan:
    return StepPlan(step_id=StepId(step), rows=())


class Faulty(SimulatedExecutor):
    """Fails where it is told to, and remembers its thread."""

    def __init__(self, errors: dict[int, Exception] | None = None) -> None:
        super().__init__(SPEC)
        self.errors = errors or {}
        self.threads: set[int] = set()
        self.closed = False

    def execute(self, plan: StepPlan) -> StepResult:
        self.threads.add(threading.get_ident())
        if plan.step_id in self.errors:
            raise self.errors[plan.step_id]
        return super().execute(plan)

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed = True


async def outcomes(
    executor: Faulty, steps: int, build: Callable[[], Faulty] | None = None
) -> list[StepDone | StepFailed]:
    found: asyncio.Queue[StepDone | StepFailed] = asyncio.Queue()
    thread = ExecutorThread(finished=found.put_nowait, clock=MonotonicClock())
    assert await thread.start(build or (lambda: executor)) == SPEC
    for step in range(steps):
        thread.submit(plan(step))
    received = [await found.get() for _ in range(steps)]
    assert thread.busy_seconds() == 0
    await thread.stop()
    return received


@async_test
async def test_steps_end_in_the_order_in_which_they_were_submitted():
    executor = Faulty()
    received = await outcomes(executor, 5)
    assert [outcome.step_id for outcome in received] == [0, 1, 2, 3, 4]
    assert executor.closed


@async_test
async def test_an_executor_lives_in_one_thread_that_is_not_the_loops():
    executor = Faulty()
    await outcomes(executor, 3)
    assert len(executor.threads) == 1
    assert threading.get_ident() not in executor.threads


@async_test
async def test_a_fault_and_a_bug_fail_their_step_only():
    executor = Faulty({1: ExecutorFault("the device is gone"), 2: ZeroDivisionError("secret")})
    received = await outcomes(executor, 4)
    assert received[1] == StepFailed(StepId(1), "the device is gone")
    assert received[2] == StepFailed(StepId(2), "internal error in the executor")
    assert isinstance(received[3], StepDone)


@async_test
async def test_an_executor_that_cannot_be_built_says_why_to_the_starter():
    def build() -> Faulty:
        raise ModelTooLarge("needs 9 GB")

    thread = ExecutorThread(finished=lambda _: None, clock=MonotonicClock())
    with pytest.raises(ModelTooLarge, match="9 GB"):
        await thread.start(build)
    await thread.stop()


@async_test
async def test_a_step_that_hangs_is_seen_from_outside():
    class Now:
        seconds = 0.0

        def now(self) -> float:
            return self.seconds

    clock, release = Now(), threading.Event()
    executor = PacedExecutor(Faulty(), speed=1, wait=lambda _: release.wait(10))
    done: asyncio.Queue[StepDone | StepFailed] = asyncio.Queue()
    thread = ExecutorThread(finished=done.put_nowait, clock=clock)
    await thread.start(lambda: executor)
    assert thread.busy_seconds() == 0
    thread.submit(plan(0))
    thread.submit(plan(1))
    clock.seconds = 7.0
    assert thread.busy_seconds() == 7.0
    release.set()
    await done.get()
    assert thread.busy_seconds() == 0.0  # the second step's turn has just come
    await done.get()
    await thread.stop()


def test_a_paced_executor_spends_the_time_that_the_other_reports():
    waits: list[float] = []
    inner = SimulatedExecutor(SPEC, StepTime(base=0.5, per_decode=0.25, per_context=0))
    executor = PacedExecutor(inner, speed=2.0, wait=waits.append)
    row = Row(SequenceId(0), 0, (1,), (0,), samples=False)
    executor.execute(StepPlan(step_id=StepId(0), rows=(row,)))
    assert waits == [1.5]
    assert executor.spec is inner.spec
