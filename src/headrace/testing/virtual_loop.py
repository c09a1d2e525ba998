"""VirtualTimeLoop: asyncio's own event loop, whose time is a number.

Nothing sleeps: when no callback is ready, the time jumps to the next timer, to the last bit.
Callbacks of one time run in the order in which they were scheduled, so two runs are the same.
Sockets and threads are not waited for. A callback that raises ends the run with its exception,
and a run that can never go on raises RuntimeError instead of hanging.

::

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
"""

from __future__ import annotations

import asyncio
import selectors
from heapq import heappop, heappush
from typing import TYPE_CHECKING, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from headrace.types import Seconds

Ts = TypeVarTuple("Ts")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time in seconds from ``start``; it is a Clock too."""

    def __init__(self, start: Seconds = 0.0) -> None:
        self._now = start
        self._timers: list[tuple[Seconds, int, asyncio.TimerHandle, Callable[[], None]]] = []
        self._num_timers = 0
        self._failure: BaseException | None = None
        super().__init__(_JumpingSelector(self._jump))
        self.set_exception_handler(self._fail)

    def time(self) -> Seconds:
        """Return the virtual time."""
        return self._now

    def now(self) -> Seconds:
        """Return the virtual time."""
        return self._now

    def call_at(
        self,
        when: Seconds,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back at ``when`` exactly, after whatever was scheduled for then before."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)

        def ring() -> None:
            if not timer.cancelled():
                callback(*args)

        def call_soon() -> None:
            self.call_soon(ring, context=context)

        heappush(self._timers, (when, self._num_timers, timer, call_soon))
        self._num_timers += 1
        return timer

    def run_forever(self) -> None:
        """Run until stopped; raise what a callback raised."""
        super().run_forever()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _jump(self, timeout: Seconds | None) -> None:
        """Move the time on instead of waiting: asyncio waits when no callback is ready."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heappop(timers)
        if timeout is None:
            if not timers:
                raise RuntimeError(f"nothing can happen any more after {self._now} s: a deadlock")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            heappop(timers)[3]()

    def _fail(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        exception = context.get("exception")
        if not isinstance(exception, BaseException):
            exception = RuntimeError(context["message"])
        self._failure = exception
        self.stop()


class _JumpingSelector(selectors.SelectSelector):
    """Waits for nothing."""

    def __init__(self, jump: Callable[[Seconds | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: Seconds | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._jump(timeout)
        return []
