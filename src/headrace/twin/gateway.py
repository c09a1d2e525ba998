"""SimulatedGateway: the Router, its links to replicas, and clients that only listen.

What server/gateway/traffic.py does for the Router, without HTTP and text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.autoscaler.events import PoolLoad, ReplicaLoad
from headrace.core.router.events import (
    CancelAt,
    Deliver,
    Dispatch,
    Fail,
    GoOn,
    PolicyFailed,
    ReplicaEmptied,
    ReplicaLost,
    RouterEffect,
    RouterEvent,
    WantSnapshot,
)
from headrace.core.scheduler.events import Abort, SnapshotWanted
from headrace.errors import InvariantBroken
from headrace.twin.replica import Submission
from headrace.twin.simulator import SimulatedDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.router.figures import ReplicaFigures
    from headrace.core.router.machine import Router
    from headrace.twin.ledger import Ledger
    from headrace.twin.network import Link
    from headrace.twin.replica import ToEngine
    from headrace.twin.simulator import Simulator
    from headrace.types import ReplicaId, Request, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Both directions between the gateway and one replica."""

    to_engine: Link[ToEngine]
    to_gateway: Link[RouterEvent]

    def cut(self) -> None:
        """Lose all that is on its way."""
        self.to_engine.cut()
        self.to_gateway.cut()


class SimulatedGateway:
    """Performs the Router's effects. ``on_emptied`` hears of drains that are done."""

    def __init__(
        self,
        router: Router,
        ledger: Ledger,
        *,
        simulator: Simulator,
        clock_offset: Seconds,
        on_emptied: Callable[[ReplicaId], None],
    ) -> None:
        self.router = router
        self.driver: SimulatedDriver[RouterEvent, RouterEffect] = SimulatedDriver(
            simulator, router, perform=self._perform, clock_offset=clock_offset
        )
        self.dispatched: Counter[ReplicaId] = Counter()
        self.migrations = 0  # a stream went on elsewhere after tokens were delivered
        self.retries = 0  # ... before
        self._ledger = ledger
        self._simulator = simulator
        self._connections: dict[ReplicaId, Connection] = {}
        self._on_emptied = on_emptied

    def connect(self, replica: ReplicaId, connection: Connection, ready: RouterEvent) -> None:
        """A replica takes requests from now on."""
        self._connections[replica] = connection
        self.driver.deliver(ready)

    def lose(self, replica: ReplicaId, reason: str) -> None:
        """The connection to a replica was reset."""
        if self._connections.pop(replica, None) is not None:
            self.driver.deliver(ReplicaLost(replica, reason))

    def load(self) -> PoolLoad:
        """Return what the controller is told, some times a second."""
        figures = self.router.figures(self.driver.now)
        return PoolLoad(
            waiting=figures.waiting,
            waiting_tokens=figures.waiting_tokens,
            predicted_ttft=figures.predicted_ttft,
            replicas=tuple(_replica_load(replica) for replica in figures.replicas),
        )

    def _perform(self, effect: RouterEffect) -> None:
        match effect:
            case Deliver(outputs):
                self._ledger.take(outputs, self._simulator.now)
            case Dispatch(replica, request):
                self.dispatched[replica] += 1
                self._send(replica, _submission(request, self.driver.now))
            case CancelAt(replica, request_id):
                self._send(replica, Abort(request_id))
            case Fail(request_id, code):
                self._ledger.fail(request_id, code, self._simulator.now)
            case GoOn():
                self.migrations += effect.num_tokens > 0
                self.retries += effect.num_tokens == 0
            case WantSnapshot(replica):
                self._send(replica, SnapshotWanted("gateway"))
            case ReplicaEmptied(replica):
                self._on_emptied(replica)
            case PolicyFailed(policy, reason):
                raise InvariantBroken(f"policy {policy} failed: {reason}")
            case _:
                pass

    def _send(self, replica: ReplicaId, message: ToEngine) -> None:
        connection = self._connections.get(replica)
        if connection is not None:
            connection.to_engine.send(message)


def _submission(request: Request, now: Seconds) -> Submission:
    deadline, first = request.deadline, request.first_token_by
    return Submission(
        request,
        time_left=None if deadline is None else deadline - now,
        first_token_in=None if first is None else first - now,
    )


def _replica_load(figures: ReplicaFigures) -> ReplicaLoad:
    return ReplicaLoad(
        replica=figures.replica,
        outstanding=figures.outstanding,
        prefill_tokens=figures.prefill_tokens,
        kv_used=figures.kv_used,
        prefill_rate=figures.prefill_rate,
        computed_tokens=figures.computed_tokens,
        max_num_seqs=figures.max_num_seqs,
    )
