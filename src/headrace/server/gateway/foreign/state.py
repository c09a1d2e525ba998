"""Whether a foreign gateway is any good, and what people ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from headrace.core.health import ReplicaState
from headrace.messages import PoolReport
from headrace.monitoring import table
from headrace.monitoring.shapes import ReplicaRow
from headrace.server.gateway.health import Health, ReplicaHealth
from headrace.server.gateway.http.messages import Response
from headrace.server.gateway.pool import record_knowledge
from headrace.server.gateway.state import PoolCounts
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.clock import Clock
    from headrace.core.router.figures import ReplicaFigures
    from headrace.monitoring.metrics import Registry
    from headrace.server.gateway.foreign.health import ReplicaWatch
    from headrace.server.gateway.foreign.pools import ModelPools
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest
    from headrace.server.gateway.scrape import Scrape
    from headrace.types import Seconds


@dataclass(frozen=True, slots=True)
class ForeignPool:
    """All pools as one picture. Reads what others keep; keeps nothing."""

    pools: ModelPools
    watches: Sequence[ReplicaWatch]
    chosen_policy: str

    @property
    def model(self) -> str:
        """All models that are served now."""
        return ", ".join(self.pools.cards)

    @property
    def policy(self) -> str:
        """The first that is no longer the chosen one, if a Router had to replace it."""
        used = (pool.router.policy for pool in self.pools.pools)
        return next((each for each in used if each != self.chosen_policy), self.chosen_policy)

    def rows(self, now: Seconds) -> list[ReplicaRow]:
        """Return every replica that was named, in that order."""
        figures = self._figures(now)
        return [self._row(watch, figures.get(ReplicaId(watch.name)), now) for watch in self.watches]

    def record(self, registry: Registry, now: Seconds) -> None:
        """Write down what is looked up only when somebody asks."""
        counts = self.counts(now)
        registry.put(table.ROUTER_WAITING, value=counts.waiting)
        registry.put(table.ROUTER_WAITING_TOKENS, value=counts.waiting_tokens)
        for figures in self._figures(now).values():
            record_knowledge(registry, figures)

    def counts(self, now: Seconds) -> PoolCounts:
        """Count requests, of all models."""
        routers = [pool.router for pool in self.pools.pools]
        figures = [router.figures(now) for router in routers]
        return PoolCounts(
            waiting=sum(each.waiting for each in figures),
            waiting_tokens=sum(each.waiting_tokens for each in figures),
            running=sum(router.num_alive - router.num_waiting for router in routers),
        )

    def report(self, gateway: str, now: Seconds) -> PoolReport:
        """Return the load, as a controller wants it: of replicas that it cannot scale nothing."""
        counts = self.counts(now)
        return PoolReport(
            gateway=gateway,
            waiting=counts.waiting,
            waiting_tokens=counts.waiting_tokens,
            predicted_ttft=None,
            replicas=(),
        )

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return any(pool.router.draining for pool in self.pools.pools)

    def _figures(self, now: Seconds) -> dict[ReplicaId, ReplicaFigures]:
        """Each replica as the pool sees it that predicts worst: it has one cache for all models."""
        found: dict[ReplicaId, ReplicaFigures] = {}
        for pool in self.pools.pools:
            for each in pool.router.figures(now).replicas:
                known = found.get(each.replica)
                if known is None or _accuracy(each) < _accuracy(known):
                    found[each.replica] = each
        return found

    def _row(self, watch: ReplicaWatch, figures: ReplicaFigures | None, now: Seconds) -> ReplicaRow:
        replica = ReplicaId(watch.name)
        parts = [
            each
            for pool in self.pools.pools
            for each in pool.router.figures(now).replicas
            if each.replica == replica
        ]
        load = watch.load
        views = [
            view
            for pool in self.pools.pools
            for view in pool.router.replicas
            if view.replica == replica
        ]
        return ReplicaRow(
            replica=replica,
            state=self._state(watch),
            reason=watch.reason,
            address=watch.upstream.replica.url,
            seconds_in_state=now - watch.standing.since,
            outstanding=sum(each.outstanding for each in parts),
            others=max((view.past_us for view in views), default=0),
            running=load.running if load else 0,
            waiting=load.waiting if load else 0,
            kv_used=load.kv_used if load else 0.0,
            prefill_tokens=sum(each.prefill_tokens for each in parts),
            index=figures.knowledge if figures else "",
            index_accuracy=figures.accuracy if figures else None,
        )

    def _state(self, watch: ReplicaWatch) -> str:
        """The first of its pools' opinions that is not good; what it is not in counts nothing."""
        if watch.reason:
            return "quarantined" if watch.standing.is_quarantined else ReplicaState.LOST
        replica = ReplicaId(watch.name)
        states = [pool.router.state(replica) for pool in self.pools.pools]
        troubled = (each for each in states if each not in (ReplicaState.READY, ReplicaState.LOST))
        return next(troubled, ReplicaState.READY)


def _accuracy(figures: ReplicaFigures) -> float:
    return 1.0 if figures.accuracy is None else figures.accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignState:
    """GET /live, /ready, /health and /metrics."""

    pool: ForeignPool
    scrape: Scrape
    clock: Clock

    def live(self, _request: HttpRequest, exchange: Exchange) -> None:
        """GET /live: the loop turns, or there would be no answer."""
        exchange.reply(Response(200, b'{"ok":true}'))

    def health(self, _request: HttpRequest, exchange: Exchange) -> None:
        """GET /ready and /health: some replica answers and serves a model."""
        health = self.judge()
        exchange.reply(Response(200 if health.ok else 503, msgspec.json.encode(health)))

    def metrics(self, _request: HttpRequest, exchange: Exchange) -> None:
        """GET /metrics, for Prometheus."""
        self.scrape.serve(exchange)

    def judge(self) -> Health:
        """Return the state of the whole: fine as long as one replica takes requests."""
        rows = self.pool.rows(self.clock.now())
        taking = (ReplicaState.READY, ReplicaState.PROBING)
        replicas = [
            ReplicaHealth(row.replica, row.state in taking, row.outstanding, 0.0, row.state)
            for row in rows
        ]
        reasons = [
            f"{row.replica}: {row.reason or row.state}" for row in rows if row.state not in taking
        ]
        if self.pool.draining:
            reasons.append("draining")
        ok = not self.pool.draining and any(each.ok for each in replicas)
        return Health(ok, reasons, replicas)
