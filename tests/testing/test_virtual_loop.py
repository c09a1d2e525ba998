"""VirtualTimeLoop: asyncio without waiting."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from headrace.testing.virtual_loop import VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


def run(main: Callable[[], Coroutine[None, None, T]], start: float = 0.0) -> T:
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start)) as runner:
        return runner.run(main())


def test_a_day_passes_at_once_and_exactly():
    async def main() -> float:
        await asyncio.sleep(86_400.1)
        return asyncio.get_running_loop().time()

    assert run(main) == 86_400.1


def test_timers_of_one_time_ring_in_the_order_in_which_they_were_set():
    order: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for i in range(50):
            loop.call_at(1.0, order.append, i)
        await asyncio.sleep(2)

    run(main)
    assert order == list(range(50))


def test_times_that_differ_in_the_last_bit_are_different_times():
    times: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for when in (1000.1, 1000.1000000000001, 1000.0999999999999):
            loop.call_at(when, lambda: times.append(loop.time()))
        await asyncio.sleep(2)

    run(main, start=1000.0)
    assert times == [1000.0999999999999, 1000.1, 1000.1000000000001]


def test_timeouts_task_groups_and_cancelled_timers_work():
    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(5, pytest.fail, "was cancelled").cancel()
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(asyncio.sleep(3, "slow"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await asyncio.Event().wait()
        assert slow.result() == "slow"
        return loop.time()

    assert run(main) == 3


def test_a_deadlock_is_an_error_and_does_not_hang():
    loop = VirtualTimeLoop()
    task = loop.create_task(asyncio.Event().wait())
    with pytest.raises(RuntimeError, match="deadlock"):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()


def test_a_callback_that_raises_ends_the_run():
    async def main() -> None:
        asyncio.get_running_loop().call_soon(int, "x")
        await asyncio.sleep(1)

    with pytest.raises(ValueError, match="invalid literal"):
        run(main)
