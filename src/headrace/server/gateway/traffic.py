"""The shell round the Router: links report here, and its decisions are carried out.

Links report (LinkEvents); the Router decides; its effects go to links, to the generations of
clients and to the books. Everything happens on the event loop.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, assert_never

from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.router.events import (
    CancelAt,
    Deliver,
    Dispatch,
    Drained,
    DrainReplica,
    Fail,
    GoOn,
    KnowledgeChanged,
    KvListed,
    KvReported,
    LoadReported,
    Outputs,
    PolicyFailed,
    ReplicaBeat,
    ReplicaEmptied,
    ReplicaJudged,
    ReplicaLost,
    ReplicaReady,
    RouterEvent,
    WantSnapshot,
)
from headrace.monitoring.logging import event as log_event
from headrace.server.driver import AsyncioDriver
from headrace.server.gateway.generations import Generations

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from headrace.clock import Clock
    from headrace.core.router.events import AttemptFailed, RouterEffect
    from headrace.core.router.machine import Router
    from headrace.monitoring.engine_figures import EngineFigures
    from headrace.server.gateway.decisions import Decision, Decisions
    from headrace.server.links import ReplicaDescription, ReplicaLink, ReplicaProcess
    from headrace.types import (
        BlockKey,
        Output,
        ReplicaId,
        ReportLoad,
        Request,
        RequestId,
        Seconds,
    )

_LOG = logging.getLogger(__name__)


class Links(Protocol):
    """The links to replicas. ``Replicas`` is one, and foreign/pools.py has another."""

    @property
    def draining(self) -> Mapping[ReplicaId, Seconds]:
        """For how long the members that drain may do so, ready or not."""
        ...

    def add(self, link: ReplicaLink, description: ReplicaDescription) -> str | None:
        """Take a replica in, or return why not."""
        ...

    def remove(self, replica: ReplicaId) -> bool:
        """Forget a replica; return whether it was there."""
        ...

    def submit(self, replica: ReplicaId, request: Request) -> None:
        """Send an attempt, if the replica is still there."""
        ...

    def abort(self, replica: ReplicaId, request_id: RequestId) -> None:
        """Give an attempt up, if the replica is still there."""
        ...

    def want_snapshot(self, replica: ReplicaId) -> None:
        """Ask for all of its prefix cache, if it is still there."""
        ...


class Traffic:
    """Implements LinkEvents.

    ``drained`` is set when the Router says so; ``on_emptied`` is called when a draining replica
    has none of our requests left.
    """

    def __init__(
        self,
        router: Router,
        *,
        replicas: Links,
        decisions: Decisions,
        figures: EngineFigures,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        on_fault: Callable[[Exception], None],
    ) -> None:
        self.drained: asyncio.Future[None] = loop.create_future()
        self.on_emptied: Callable[[ReplicaId], None] = _ignore
        self._replicas = replicas
        self._decisions = decisions
        self._figures = figures
        self._driver: AsyncioDriver[RouterEvent, RouterEffect] = AsyncioDriver(
            router, perform=self._perform, clock=clock, loop=loop, on_fault=on_fault
        )
        self.feed: Callable[[RouterEvent], None] = self._driver.feed
        self.generations = Generations(self.feed, clock)

    def close(self) -> None:
        """Decide nothing more."""
        self._driver.close()

    def replica_ready(
        self,
        link: ReplicaLink,
        description: ReplicaDescription,
        *,
        weight: float = 1.0,
        canary: float = 0.0,
        lists_blocks: bool = True,
    ) -> None:
        """See LinkEvents. What follows ``description`` is as in ReplicaFacts."""
        replica = link.replica
        refusal = self._replicas.add(link, description)
        if refusal is not None:
            log_event(_LOG, logging.ERROR, "replica is not used", replica=replica, reason=refusal)
            return
        self._figures.ready(replica)
        facts = _facts(description, weight=weight, canary=canary, lists_blocks=lists_blocks)
        self.feed(ReplicaReady(replica, facts, description.epoch))
        limit = self._replicas.draining.get(replica)
        if limit is not None:
            self.feed(DrainReplica(replica, limit))

    def replica_lost(self, replica: ReplicaId, reason: str) -> None:
        """See LinkEvents. Said twice, it counts once."""
        if self._replicas.remove(replica):
            self._figures.lost(replica)
            self.feed(ReplicaLost(replica, reason))

    def dismiss(self, replica: ReplicaId) -> None:
        """A replica is gone for good: its streams go on elsewhere, whether or not it answers."""
        if not self._replicas.remove(replica):
            self._decisions.forget(replica)
            return
        self._decisions.dismiss(replica)
        self._figures.gone(replica)
        self.feed(ReplicaLost(replica, "it is no member any more", dismissed=True))

    def outputs(self, replica: ReplicaId, outputs: Sequence[Output]) -> None:
        """See LinkEvents."""
        self.feed(Outputs(replica, tuple(outputs)))

    def failed(self, failure: AttemptFailed) -> None:
        """See LinkEvents."""
        self.feed(failure)

    def load(self, replica: ReplicaId, report: ReportLoad) -> None:
        """See LinkEvents."""
        self._figures.load(replica, report)
        self.feed(LoadReported(replica, report))

    def beat(self, replica: ReplicaId, process: ReplicaProcess) -> None:
        """See LinkEvents."""
        self._figures.process(
            replica,
            resident_bytes=process.resident_bytes,
            open_fds=process.open_fds,
            cpu_seconds=process.cpu_seconds,
        )
        self.feed(ReplicaBeat(replica, process.kv_changes))

    def kv_changed(
        self,
        replica: ReplicaId,
        number: int,
        stored: tuple[BlockKey, ...],
        removed: tuple[BlockKey, ...],
        epoch: int = 0,
    ) -> None:
        """See LinkEvents."""
        self._figures.kv_changed(replica)
        self.feed(KvReported(replica, number, stored, removed, epoch))

    def kv_listed(
        self, replica: ReplicaId, number: int, keys: tuple[BlockKey, ...], epoch: int = 0
    ) -> None:
        """See LinkEvents."""
        self.feed(KvListed(replica, number, keys, epoch))

    def _perform(self, effect: RouterEffect) -> None:
        if isinstance(effect, Deliver):
            self.generations.deliver(effect.outputs)
            return
        self._decisions.note(effect)
        self._carry_out(effect)

    def _carry_out(self, effect: Decision) -> None:
        match effect:
            case Dispatch(replica, request):
                self.generations.place(effect, self._decisions.policy)
                self._replicas.submit(replica, request)
            case CancelAt(replica, request_id):
                self._replicas.abort(replica, request_id)
            case GoOn():
                self.generations.move(effect)
            case Fail():
                self.generations.fail(effect)
            case ReplicaEmptied(replica):
                self.on_emptied(replica)
            case WantSnapshot(replica):
                self._replicas.want_snapshot(replica)
            case Drained():
                self.drained.set_result(None)
            case ReplicaJudged() | PolicyFailed() | KnowledgeChanged():
                pass  # noting them is all
            case _:
                assert_never(effect)


def _ignore(_replica: ReplicaId) -> None:
    """Nobody wants to know."""


def _facts(
    description: ReplicaDescription, *, weight: float, canary: float, lists_blocks: bool
) -> ReplicaFacts:
    return ReplicaFacts(
        block_size=description.block_size,
        num_blocks=description.num_blocks,
        max_num_seqs=description.max_num_seqs,
        max_num_batched_tokens=description.max_num_batched_tokens,
        weight=weight,
        canary=canary,
        role=description.role,
        lends_at=description.lends_at,
        peer_block_seconds=description.peer_block_seconds,
        lists_blocks=lists_blocks,
    )
