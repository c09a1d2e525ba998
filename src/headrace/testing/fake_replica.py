"""Replicas without processes: links that a gateway takes for real ones.

``ScriptedReplica`` says what a test tells it to. ``SimulatedReplica`` is a real EngineCore on an
executor, in the gateway's own loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, assert_never

from headrace.core.router.events import AttemptFailed
from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.events import (
    Abort,
    Emit,
    EngineEvent,
    Execute,
    Incident,
    KvChanged,
    KvSnapshot,
    Output,
    Reject,
    ReportLoad,
    SnapshotWanted,
    StepDone,
    Submit,
    Transfer,
)
from headrace.errors import InvariantBroken
from headrace.machine import Source
from headrace.server.driver import AsyncioDriver
from headrace.server.links import ReplicaDescription, ReplicaProcess
from headrace.server.transport.link import RETRYABLE
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.clock import Clock
    from headrace.core.scheduler.events import EngineEffect
    from headrace.core.scheduler.plan import StepResult
    from headrace.executor.base import Executor, ExecutorSpec
    from headrace.server.links import LinkEvents
    from headrace.types import (
        EngineTiming,
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
BEAT_SECONDS: Final = 0.5
IDLE = ReplicaProcess(step_seconds=0.0, resident_bytes=1 << 20, open_fds=8, cpu_seconds=0.5)


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
    """Implements ReplicaLink: keeps what it was asked, says what it is told to say.

    Load reports, heartbeats and changes of a prefix cache are said to ``events`` directly.
    """

    def __init__(self, events: LinkEvents, *, vocab_size: int, replica: ReplicaId = FIRST) -> None:
        self.submitted: list[Request] = []
        self.aborted: list[RequestId] = []
        self.num_snapshots_wanted = 0
        self.description = describe(replica, vocab_size=vocab_size)
        self.events = events
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

    def want_snapshot(self) -> None:
        """See ReplicaLink: the test answers with ``list_kv``."""
        self.num_snapshots_wanted += 1

    def abort(self, request_id: RequestId) -> None:
        """See ReplicaLink."""
        self.aborted.append(request_id)

    def connect(self) -> None:
        """Become ready."""
        self.events.replica_ready(self, self.description)

    def disconnect(self, reason: str = "the test says so") -> None:
        """Be lost."""
        self.events.replica_lost(self._replica, reason)

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
        timing: EngineTiming | None = None,
    ) -> None:
        """Report tokens of one request, as one step."""
        output = Output(
            request.id, tuple(tokens), finish, cached_tokens, tuple(logprobs), reason, timing
        )
        self.events.outputs(self._replica, (output,))

    def reject(
        self, request: Request, code: str, reason: str, retry_after: Seconds | None = None
    ) -> None:
        """Refuse a request."""
        self.events.failed(
            AttemptFailed(
                replica=self._replica,
                request_id=request.id,
                code=code,
                reason=reason,
                retryable=retry_after is not None,
                retry_after=retry_after,
            )
        )

    def say_all(self, outputs: Sequence[Output]) -> None:
        """Report tokens of several requests, as one step."""
        self.events.outputs(self._replica, outputs)


class SimulatedReplica:
    """Implements ReplicaLink: a whole engine. Steps take ``time_factor`` times their seconds.

    It can be killed (its connection is lost, whatever it did), and hang like a stopped process:
    nothing goes in or out until ``resume``, then all of it, stale as it is.
    """

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
        self.tokens_to_live: Tokens | None = None  # it dies in the step that would exceed them
        self._events = events
        self._executor = executor
        self._replica = replica
        self._time_factor = time_factor
        self._loop = asyncio.get_running_loop()
        self._beat: asyncio.TimerHandle | None = None
        self._gate = _Gate()
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
        self._gate.pass_on(lambda: self._driver.feed(Submit(request)))

    def want_snapshot(self) -> None:
        """See ReplicaLink."""
        self._gate.pass_on(lambda: self._driver.feed(SnapshotWanted("gateway")))

    def abort(self, request_id: RequestId) -> None:
        """See ReplicaLink."""
        self._gate.pass_on(lambda: self._driver.feed(Abort(request_id)))

    def connect(self) -> None:
        """Become ready, and beat from now on."""
        self._events.replica_ready(self, _describe_spec(self._replica, self._executor.spec))
        self._send_beat()

    def kill(self, reason: str = "killed") -> None:
        """End without a word: the connection is lost, and no more comes."""
        if not self._driver.is_closed:
            self.close()
            self._events.replica_lost(self._replica, reason)

    def hang(self) -> None:
        """Stand still like a process that got SIGSTOP: the connection stays."""
        self._gate.shut()

    def resume(self) -> None:
        """Go on as if no time had passed."""
        self._gate.open()

    def close(self) -> None:
        """Stop deciding and beating. Idempotent."""
        self._driver.close()
        if self._beat is not None:
            self._beat.cancel()

    def _perform(self, effect: EngineEffect) -> None:
        if self._driver.is_closed:
            return
        match effect:
            case Execute(plan):
                result = self._executor.execute(plan)
                self._later(result.seconds * self._time_factor, plan.step_id, result)
            case Emit(outputs):
                self._emit(outputs)
            case Reject(request_id, code, reason, retry_after):
                self._events.failed(
                    AttemptFailed(
                        replica=self._replica,
                        request_id=request_id,
                        code=code,
                        reason=reason,
                        retryable=code in RETRYABLE,
                        retry_after=retry_after,
                    )
                )
            case ReportLoad():
                self._events.load(self._replica, effect)
            case KvChanged(number, stored, removed):
                self._events.kv_changed(self._replica, number, stored, removed)
            case Incident():
                raise InvariantBroken(effect.reason)
            case KvSnapshot(_, number, keys):
                self._events.kv_listed(self._replica, number, keys)
            case Transfer():
                raise InvariantBroken(f"{effect}: it has no lower tiers")
            case _:
                assert_never(effect)

    def _emit(self, outputs: tuple[Output, ...]) -> None:
        if self.tokens_to_live is not None:
            self.tokens_to_live -= sum(len(output.tokens) for output in outputs)
            if self.tokens_to_live < 0:
                self.kill()
                return
        self._events.outputs(self._replica, outputs)

    def _later(self, delay: Seconds, step_id: StepId, result: StepResult) -> None:
        def land() -> None:
            event = StepDone(step_id, result)
            self._gate.pass_on(lambda: self._driver.feed(event, Source.DEVICE))

        if delay > 0:
            self._loop.call_later(delay, land)
        else:
            self._loop.call_soon(land)

    def _send_beat(self) -> None:
        self._gate.pass_on(lambda: self._events.beat(self._replica, IDLE))
        self._beat = self._loop.call_later(BEAT_SECONDS, self._send_beat)

    def _fail(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "the engine died", "exception": error})


class _Gate:
    """Passes calls on, or keeps them while it is shut."""

    def __init__(self) -> None:
        self._kept: list[Callable[[], None]] = []
        self._is_shut = False

    def pass_on(self, call: Callable[[], None]) -> None:
        if self._is_shut:
            self._kept.append(call)
        else:
            call()

    def shut(self) -> None:
        self._is_shut = True

    def open(self) -> None:
        self._is_shut = False
        kept, self._kept = self._kept, []
        for call in kept:
            call()


def _describe_spec(replica: ReplicaId, spec: ExecutorSpec) -> ReplicaDescription:
    return describe(
        replica,
        vocab_size=spec.vocab_size,
        model_identity=spec.model_identity,
        max_model_len=spec.max_model_len,
        block_size=spec.block_size,
        num_blocks=spec.num_blocks,
    )
