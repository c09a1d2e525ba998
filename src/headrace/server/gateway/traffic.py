"""Generations under way and the replicas that work on them: the shell round the Router.

Links report here (LinkEvents); the Router decides; its effects are carried out on links and
generations. Everything happens on the event loop.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, assert_never

from headrace.core.router.events import (
    CancelAt,
    ClientGone,
    Deliver,
    Dispatch,
    Drain,
    Drained,
    Fail,
    LoadReported,
    Outputs,
    RejectedByReplica,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
    RouterEvent,
)
from headrace.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFault,
    InvalidRequest,
    NotReady,
    Overloaded,
    RequestError,
)
from headrace.errors import ReplicaLost as ReplicaLostError
from headrace.monitoring import table
from headrace.monitoring.engine_figures import forget_replica, record_load
from headrace.monitoring.logging import event as log_event
from headrace.server.driver import AsyncioDriver

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from headrace.clock import Clock
    from headrace.core.router.events import RouterEffect
    from headrace.core.router.machine import Router
    from headrace.core.scheduler.events import Output, ReportLoad
    from headrace.monitoring.metrics import Registry
    from headrace.server.gateway.generation import Generation
    from headrace.server.gateway.replicas import Replicas
    from headrace.server.links import ReplicaDescription, ReplicaLink
    from headrace.types import ReplicaId, Request, RequestId, Seconds

_LOG = logging.getLogger(__name__)

_ERRORS: dict[str, type[RequestError]] = {
    error.code: error
    for error in (
        InvalidRequest,
        ContextLengthExceeded,
        EngineFault,
        ReplicaLostError,
        Overloaded,
        NotReady,
        DeadlineExceeded,
    )
}


class Traffic:
    """Implements LinkEvents. ``drained`` is set when the Router says so."""

    def __init__(
        self,
        router: Router,
        *,
        replicas: Replicas,
        registry: Registry,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        on_fault: Callable[[Exception], None],
    ) -> None:
        self.drained: asyncio.Future[None] = loop.create_future()
        self._replicas = replicas
        self._registry = registry
        self._clock = clock
        self._generations: dict[RequestId, Generation] = {}
        self._driver: AsyncioDriver[RouterEvent, RouterEffect] = AsyncioDriver(
            router, perform=self._perform, clock=clock, loop=loop, on_fault=on_fault
        )

    def begin(self, generation: Generation, groups: Sequence[tuple[Request, ...]]) -> None:
        """Ask the Router for a place for each group; answers come to the generation."""
        for group in groups:
            for request in group:
                self._generations[request.id] = generation
        for group in groups:
            self._driver.feed(RequestArrived(group))

    def release(self, request_ids: tuple[RequestId, ...], *, unwanted: bool) -> None:
        """Forget requests that are over; if ``unwanted``, engines are told."""
        for request_id in request_ids:
            del self._generations[request_id]
        if unwanted:
            self._driver.feed(ClientGone(request_ids))

    def drain(self, limit: Seconds) -> None:
        """Take nothing new; fail what is left after ``limit`` seconds."""
        self._driver.feed(Drain(limit))

    def close(self) -> None:
        """Decide nothing more."""
        self._driver.close()

    def replica_ready(self, link: ReplicaLink, description: ReplicaDescription) -> None:
        """See LinkEvents."""
        refusal = self._replicas.add(link, description)
        if refusal is not None:
            log_event(
                _LOG, logging.ERROR, "replica is not used", replica=link.replica, reason=refusal
            )
            return
        self._registry.put(table.REPLICA_READY, link.replica, value=1)
        self._driver.feed(ReplicaReady(link.replica))

    def replica_lost(self, replica: ReplicaId, reason: str) -> None:
        """See LinkEvents."""
        self._replicas.remove(replica)
        self._registry.put(table.REPLICA_READY, replica, value=0)
        self._registry.add(table.REPLICA_LOSSES, replica)
        forget_replica(self._registry, replica)
        self._driver.feed(ReplicaLost(replica, reason))

    def outputs(self, replica: ReplicaId, outputs: Sequence[Output]) -> None:
        """See LinkEvents."""
        self._driver.feed(Outputs(replica, tuple(outputs)))

    def rejected(self, replica: ReplicaId, request_id: RequestId, code: str, reason: str) -> None:
        """See LinkEvents."""
        self._driver.feed(RejectedByReplica(replica, request_id, code, reason))

    def load(self, replica: ReplicaId, report: ReportLoad) -> None:
        """See LinkEvents."""
        record_load(self._registry, replica, report)
        self._driver.feed(LoadReported(replica, report))

    def _perform(self, effect: RouterEffect) -> None:
        match effect:
            case Deliver(outputs):
                self._deliver(outputs)
            case Dispatch(replica, request):
                self._replicas.submit(replica, request)
            case CancelAt(replica, request_id):
                self._replicas.abort(replica, request_id)
            case Fail(request_id, code, reason, retry_after):
                generation = self._generations.get(request_id)
                if generation is not None:
                    error = _ERRORS.get(code, EngineFault)
                    generation.fail(error(reason, retry_after=retry_after))
            case Drained():
                self.drained.set_result(None)
            case _:
                assert_never(effect)

    def _deliver(self, outputs: tuple[Output, ...]) -> None:
        """Push all tokens of a step, then send: one write for each client."""
        now = self._clock.now()
        touched = []
        for output in outputs:
            generation = self._generations.get(output.request_id)
            if generation is not None:
                touched.append(generation)
                self._push(generation, output, now)
        for generation in touched:
            generation.flush()

    def _push(self, generation: Generation, output: Output, now: Seconds) -> None:
        """Push, and keep what goes wrong with one request from the others."""
        try:
            generation.push(output, now)
        except Exception:
            _LOG.exception("request %s failed", output.request_id)
            generation.fail(RequestError("internal error"))
