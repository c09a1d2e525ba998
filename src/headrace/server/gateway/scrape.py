"""GET /metrics: what the gateway counts, what engines report, what must be looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.monitoring.engine_figures import record_process
from headrace.monitoring.metrics import CONTENT_TYPE
from headrace.server.gateway.http.messages import Response
from headrace.server.gateway.peers import ALONE
from headrace.server.vitals import vitals

if TYPE_CHECKING:
    from headrace.clock import Clock
    from headrace.monitoring.metrics import Registry
    from headrace.server.gateway.figures import Figures
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.peers import Peers
    from headrace.types import Seconds

_TYPE = CONTENT_TYPE.encode()


class Recorded(Protocol):
    """What is looked up only when somebody asks. ``Pool`` is one."""

    def record(self, registry: Registry, now: Seconds) -> None:
        """Write it down."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """All figures of one gateway, named ``process`` in them."""

    process: str
    figures: Figures
    pool: Recorded
    clock: Clock
    peers: Peers = ALONE

    def serve(self, exchange: Exchange) -> None:
        """GET /metrics: the figures of all gateways."""
        self.peers.answer_metrics(self.response, exchange.reply)

    def response(self) -> Response:
        """Return them as Prometheus text."""
        self.figures.settle()
        registry = self.figures.registry
        self.pool.record(registry, self.clock.now())
        own = vitals(step_seconds=0)
        record_process(
            registry,
            self.process,
            resident_bytes=own.resident_bytes,
            open_fds=own.open_fds,
            cpu_seconds=own.cpu_seconds,
        )
        return Response(200, registry.exposition().encode(), _TYPE)
