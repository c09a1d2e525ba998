"""Replicas without processes: links that a gateway takes for real ones.

``ScriptedReplica`` says what a test tells it to. ``SimulatedReplica`` is a real EngineCore on an
executor, in the gateway's own loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_never

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.events import (
    Abort,
    Emit,
    EngineEvent,
    Execute,
    Output,
    Reject,
    ReportLoad,
    StepDone,
    Submit,
)
from headrace.machine import Source
from headrace.server.driver import AsyncioDriver
from headrace.server.links import ReplicaDescription
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.clock import Clock
    from headrace.core.scheduler.events import EngineEffect
    from headrace.core.scheduler.plan import StepResult
    from headrace.executor.base import Executor, ExecutorSpec
    from headrace.server.links import LinkEvents
    from headrace.types import (
        FinishReason,
        Request,
        RequestId,
        Seconds,
        StepId,
        TokenId,
        TokenLogprobs,
        Tokens,
    )


FIRST = ReplicaId("r0")


def describe(
    replica: ReplicaId,
    *,
    vocab_size: int,
    model_identity: str = "fake",
    max_model_len: Tokens = 1024,
    block_size: Tokens = 16,
    num_blocks: int = 4096,
) -> ReplicaDescription:
    """Return what a fake replica says of itself."""
    return ReplicaDescription(
        replica=replica,
        model_identity=model_identity,
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=num_blocks,
        max_num_seqs=64,
        pid=1,
    )


class ScriptedReplica:
    """Implements ReplicaLink: keeps what it was asked, says what it is told to say."""

    def __init__(self, events: LinkEvents, *, vocab_size: int, replica: ReplicaId = FIRST) -> None:
        self.submitted: list[Request] = []
        self.aborted: list[RequestId] = []
        self.description = describe(replica, vocab_size=vocab_size)
        self._events = events
        self._replica = replica
        self._arrivals: asyncio.Queue[Request] = asyncio.Queue()

    @property
    def replica(self) -> ReplicaId:
        """See ReplicaLink."""
        return self._replica

    def submit(self, request: Request) -> None:
        """See ReplicaLink."""
        self.submitted.append(request)
        self._arrivals.put_nowait(request)

    def abort(self, request_id: RequestId) -> None:
        """See ReplicaLink."""
        self.aborted.append(request_id)

    def connect(self) -> None:
        """Become ready."""
        self._events.replica_ready(self, self.description)

    def disconnect(self, reason: str = "the test says so") -> None:
        """Be lost."""
        self._events.replica_lost(self._replica, reason)

    async def next_request(self) -> Request:
        """Return the next request that was not returned before."""
        return await self._arrivals.get()

    def say(
        self,
        request: Request,
        tokens: Sequence[TokenId],
        *,
        finish: FinishReason | None = None,
        cached_tokens: Tokens = 0,
        logprobs: Sequence[TokenLogprobs] = (),
        reason: str = "",
    ) -> None:
        """Report tokens of one request, as one step."""
        output = Output(request.id, tuple(tokens), finish, cached_tokens, tuple(logprobs), reason)
        self._events.outputs(self._replica, (output,))

    def say_all(self, outputs: Sequence[Output]) -> None:
        """Report tokens of several requests, as one step."""
        self._events.outputs(self._replica, outputs)

    def reject(self, request: Request, code: str, reason: str) -> None:
        """Refuse a request."""
        self._events.rejected(self._replica, request.id, code, reason)

    def report(self, load: ReportLoad) -> None:
        """Send a load report."""
        self._events.load(self._replica, load)


class SimulatedReplica:
    """Implements ReplicaLink: a whole engine. Steps take ``time_factor`` times their seconds."""

    def __init__(
        self,
        events: LinkEvents,
        *,
        executor: Executor,
        clock: Clock,
        config: SchedulerConfig | None = None,
        replica: ReplicaId = FIRST,
        time_factor: float = 0.0,
    ) -> None:
        self._events = events
        self._executor = executor
        self._replica = replica
        self._time_factor = time_factor
        self._loop = asyncio.get_running_loop()
        self._driver: AsyncioDriver[EngineEvent, EngineEffect] = AsyncioDriver(
            build_engine_core(executor.spec, config or SchedulerConfig()),
            perform=self._perform,
            clock=clock,
            loop=self._loop,
            on_fault=self._fail,
        )

    @property
    def replica(self) -> ReplicaId:
        """See ReplicaLink."""
        return self._replica

    def submit(self, request: Request) -> None:
        """See ReplicaLink."""
        self._driver.feed(Submit(request))

    def abort(self, request_id: RequestId) -> None:
        """See ReplicaLink."""
        self._driver.feed(Abort(request_id))

    def connect(self) -> None:
        """Become ready."""
        self._events.replica_ready(self, _describe_spec(self._replica, self._executor.spec))

    def close(self) -> None:
        """Stop deciding. Idempotent."""
        self._driver.close()

    def _perform(self, effect: EngineEffect) -> None:
        match effect:
            case Execute(plan):
                result = self._executor.execute(plan)
                self._later(result.seconds * self._time_factor, plan.step_id, result)
            case Emit(outputs):
                self._events.outputs(self._replica, outputs)
            case Reject(request_id, code, reason):
                self._events.rejected(self._replica, request_id, code, reason)
            case ReportLoad():
                self._events.load(self._replica, effect)
            case _:
                assert_never(effect)

    def _later(self, delay: Seconds, step_id: StepId, result: StepResult) -> None:
        def land() -> None:
            self._driver.feed(StepDone(step_id, result), Source.DEVICE)

        if delay > 0:
            self._loop.call_later(delay, land)
        else:
            self._loop.call_soon(land)

    def _fail(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "the engine died", "exception": error})


def _describe_spec(replica: ReplicaId, spec: ExecutorSpec) -> ReplicaDescription:
    return describe(
        replica,
        vocab_size=spec.vocab_size,
        model_identity=spec.model_identity,
        max_model_len=spec.max_model_len,
        block_size=spec.block_size,
        num_blocks=spec.num_blocks,
    )
