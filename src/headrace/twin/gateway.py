"""SimulatedGateway: the Router, its links to replicas, and clients that only listen.

What server/gateway/traffic.py does for the Router, without HTTP and text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
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
    RequestArrived,
    RouterEffect,
    RouterEvent,
    WantSnapshot,
)
from headrace.core.router.seats import Seats
from headrace.core.scheduler.events import Abort, SnapshotWanted
from headrace.errors import InvariantBroken, RateLimited
from headrace.twin.replica import Submission
from headrace.twin.simulator import SimulatedDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.router.figures import ReplicaFigures
    from headrace.core.router.machine import Router
    from headrace.twin.ledger import Ledger
    from headrace.twin.lines import Connection
    from headrace.twin.replica import ToEngine
    from headrace.twin.simulator import Simulator
    from headrace.types import Output, ReplicaId, Request, RequestId, Seconds


@dataclass(slots=True)
class Tally:
    """What a gateway did."""

    dispatched: Counter[ReplicaId] = field(default_factory=Counter)
    migrations: int = 0  # a stream went on elsewhere after tokens were delivered
    retries: int = 0  # ... before
    hedges: int = 0  # ... before, because it waited in vain


class Quota:
    """How many requests a tenant may have open, all gateways together, as of keys; 0: any number.

    ``elsewhere`` says how many it has at others.
    """

    def __init__(self, limit: int, elsewhere: Callable[[str], int]) -> None:
        self.seats = Seats(elsewhere)
        self._limit = limit
        self._tenants: dict[RequestId, str] = {}

    def take(self, request: Request) -> bool:
        """Count a request in, unless it is one too many."""
        if not self._limit:
            return True
        if not self.seats.take(request.tenant, self._limit):
            return False
        self._tenants[request.id] = request.tenant
        return True

    def note(self, outputs: tuple[Output, ...]) -> None:
        """Count requests out whose last output is among these."""
        if self._tenants:
            for output in outputs:
                if output.finish is not None:
                    self.leave(output.request_id)

    def leave(self, request_id: RequestId) -> None:
        """A request has ended."""
        tenant = self._tenants.pop(request_id, None)
        if tenant is not None:
            self.seats.leave(tenant)


class SimulatedGateway:
    """Performs the Router's effects. ``on_emptied`` hears of drains that are done here."""

    def __init__(
        self,
        router: Router,
        ledger: Ledger,
        *,
        name: str,
        simulator: Simulator,
        clock_offset: Seconds,
        quota: Quota,
    ) -> None:
        self.name = name
        self.router = router
        self.quota = quota
        self.tally = Tally()
        self.on_emptied: Callable[[str, ReplicaId], None] = _nobody
        self.driver: SimulatedDriver[RouterEvent, RouterEffect] = SimulatedDriver(
            simulator, router, perform=self._perform, clock_offset=clock_offset
        )
        self._ledger = ledger
        self._simulator = simulator
        self._connections: dict[ReplicaId, Connection] = {}

    def arrive(self, request: Request) -> None:
        """A client asks."""
        if self.quota.take(request):
            self.driver.deliver(RequestArrived((request,)))
        else:
            self._ledger.fail(request.id, RateLimited.code, self._simulator.now)

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
                self._deliver(outputs)
            case Dispatch(replica, request):
                self.tally.dispatched[replica] += 1
                self._send(replica, _submission(request, self.driver.now))
            case CancelAt(replica, request_id):
                self._send(replica, Abort(request_id))
            case Fail(request_id, code):
                self.quota.leave(request_id)
                self._ledger.fail(request_id, code, self._simulator.now)
            case GoOn():
                self.tally.migrations += effect.num_tokens > 0
                self.tally.retries += effect.num_tokens == 0 and not effect.hedged
                self.tally.hedges += effect.hedged
            case WantSnapshot(replica):
                self._send(replica, SnapshotWanted(self.name))
            case ReplicaEmptied(replica):
                self.on_emptied(self.name, replica)
            case PolicyFailed(policy, reason):
                raise InvariantBroken(f"policy {policy} failed: {reason}")
            case _:
                pass

    def _deliver(self, outputs: tuple[Output, ...]) -> None:
        self.quota.note(outputs)
        self._ledger.take(outputs, self._simulator.now)

    def _send(self, replica: ReplicaId, message: ToEngine) -> None:
        connection = self._connections.get(replica)
        if connection is not None:
            connection.to_engine.send(message)


def _nobody(gateway: str, replica: ReplicaId) -> None:
    raise AssertionError(f"{replica} is empty at {gateway} before there is a front")


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
