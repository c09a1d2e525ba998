"""SimulatedReplica: one life of an engine process, from ready to gone.

What server/engine.py and its listener do on sockets, done on links of virtual time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from headrace.core.router.events import (
    AttemptFailed,
    KvListed,
    KvReported,
    LoadReported,
    Outputs,
    ReplicaBeat,
    RouterEvent,
)
from headrace.core.scheduler.events import (
    Abort,
    Emit,
    EngineEffect,
    EngineEvent,
    Execute,
    Incident,
    KvChanged,
    KvSnapshot,
    Reject,
    SnapshotWanted,
    Submit,
    Transfer,
)
from headrace.errors import DeadlineInfeasible, InvariantBroken, Overloaded
from headrace.machine import Source
from headrace.twin.device import SimulatedDevice
from headrace.twin.simulator import SimulatedDriver
from headrace.types import ReportLoad

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.scheduler.engine_core import EngineCore
    from headrace.core.scheduler.events import StepDone
    from headrace.twin.device import RunsSteps
    from headrace.twin.lending import Lending
    from headrace.twin.simulator import Simulator
    from headrace.types import ReplicaId, Request, Seconds


@dataclass(frozen=True, slots=True)
class Submission:
    """A request on its way to an engine; its times travel as durations."""

    request: Request
    time_left: Seconds | None
    first_token_in: Seconds | None = None


ToEngine: TypeAlias = Submission | Abort | SnapshotWanted


class SimulatedReplica:
    """An EngineCore on a device of its own, with a clock of its own."""

    def __init__(
        self,
        name: ReplicaId,
        core: EngineCore,
        executor: RunsSteps,
        *,
        simulator: Simulator,
        clock_offset: Seconds,
        send: Callable[[RouterEvent], None],
        lending: Lending,
    ) -> None:
        self.name = name
        self.device = SimulatedDevice(executor, lambda: simulator.now, self._step_done)
        self._send = send
        self._simulator = simulator
        self._lending = lending
        lending.open(name, core.scheduler.kv.survey)
        self._driver: SimulatedDriver[EngineEvent, EngineEffect] = SimulatedDriver(
            simulator, core, perform=self._perform, clock_offset=clock_offset
        )

    def receive(self, message: ToEngine) -> None:
        """Take a message of the gateway."""
        if isinstance(message, Submission):
            now, left, first = self._driver.now, message.time_left, message.first_token_in
            request = replace(
                message.request,
                deadline=None if left is None else now + left,
                first_token_by=None if first is None else now + first,
            )
            self._driver.deliver(Submit(request))
        else:
            self._driver.deliver(message)

    def beat(self) -> None:
        """Say that the process lives."""
        self._send(ReplicaBeat(self.name))

    def end(self) -> None:
        """The process is gone."""
        self._driver.close()
        self._lending.close(self.name)

    def _step_done(self, when: Seconds, event: StepDone) -> None:
        self._driver.feed_at(when, event, Source.DEVICE)

    def _perform(self, effect: EngineEffect) -> None:
        match effect:
            case Execute():
                self.device.perform(effect)
            case Transfer():
                done, seconds = self._lending.fetch(effect)
                self._driver.feed_at(self._simulator.now + seconds, done, Source.DEVICE)
            case Emit(outputs):
                self._send(Outputs(self.name, outputs))
            case KvChanged(number, stored, removed):
                self._send(KvReported(self.name, number, stored, removed))
            case Incident():
                raise InvariantBroken(effect.reason)
            case KvSnapshot(_, number, keys):
                self._send(KvListed(self.name, number, keys))
            case ReportLoad():
                self._send(LoadReported(self.name, effect))
            case Reject(request_id, code, reason, retry_after):
                self._send(
                    AttemptFailed(
                        replica=self.name,
                        request_id=request_id,
                        code=code,
                        reason=reason,
                        retryable=code in (Overloaded.code, DeadlineInfeasible.code),
                        retry_after=retry_after,
                    )
                )
