"""A gateway process in front of foreign replicas, wired."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.clock import wall_time
from headrace.core.balancer.canaries import Canaries
from headrace.core.balancer.registry import build_policy
from headrace.core.balancer.weighted import Weighted
from headrace.core.router.limits import RouterLimits
from headrace.core.router.machine import Router
from headrace.monitoring.engine_figures import EngineFigures
from headrace.monitoring.journal import Journal
from headrace.monitoring.records import Records
from headrace.server.gateway.app import build_listener
from headrace.server.gateway.book import Book
from headrace.server.gateway.decisions import Decisions
from headrace.server.gateway.foreign.address import parse_aliases
from headrace.server.gateway.foreign.endpoints import (
    MODELS_PATH,
    PASSED_PATHS,
    ForeignModels,
    PassThrough,
)
from headrace.server.gateway.foreign.health import ReplicaWatch
from headrace.server.gateway.foreign.kv_building import build_kv_events
from headrace.server.gateway.foreign.pools import ForeignReplicas, ModelPools
from headrace.server.gateway.foreign.state import ForeignPool, ForeignState
from headrace.server.gateway.foreign.upstream import Upstream
from headrace.server.gateway.routes import Route, RouteTable
from headrace.server.gateway.scrape import Scrape
from headrace.server.gateway.state import Questions
from headrace.server.gateway.traffic import Traffic
from headrace.server.gateway.urgency import class_targets

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from headrace.server.gateway.app import Outside
    from headrace.server.gateway.config import GatewayConfig
    from headrace.server.gateway.foreign.config import ForeignConfig, ForeignReplica
    from headrace.server.gateway.foreign.kv_building import KvEvents
    from headrace.server.gateway.http.listener import Listener
    from headrace.server.gateway.routes import Keys
    from headrace.types import Seconds

_SECRET_BYTES = 32
_FLUSH_SECONDS = 2.0  # after a drain, for last bytes to leave


class ForeignGateway:
    """Serves until drained."""

    def __init__(
        self,
        *,
        listener: Listener,
        pools: ModelPools,
        watches: Sequence[ReplicaWatch],
        questions: Questions[ForeignPool],
        events: KvEvents,
        ended: asyncio.Future[None],
    ) -> None:
        self.listener = listener
        self.pools = pools
        self.watches = tuple(watches)
        self.questions = questions
        self._events = events
        self._ended = ended

    async def serve(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket; return when ``drain`` is over.

        Raises what killed a Router, if something did (M5).
        """
        await self.listener.start(sock)
        watching = [asyncio.create_task(watch.run()) for watch in self.watches]
        try:
            await asyncio.wait((self._ended, *watching), return_when=asyncio.FIRST_COMPLETED)
            for task in (self._ended, *watching):
                if task.done():
                    task.result()
        finally:
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)
            await self._events.close()
            for pool in self.pools.pools:
                pool.traffic.close()
            for watch in self.watches:
                watch.upstream.close()
            self.listener.close()

    async def drain(self, limit: Seconds) -> None:
        """Take nothing new, finish what was accepted, fail the rest after ``limit`` seconds."""
        self.listener.stop_accepting()
        await self.pools.drain(limit)
        await self.listener.closed(_FLUSH_SECONDS)
        if not self._ended.done():
            self._ended.set_result(None)


def build_foreign_gateway(
    config: GatewayConfig,
    foreign: ForeignConfig,
    replicas: Sequence[ForeignReplica],
    *,
    keys: Keys,
    outside: Outside,
) -> ForeignGateway:
    """Wire a gateway. To be called on the running loop."""
    clock, figures = outside.clock, outside.figures
    journal = outside.journal or Journal(unix_time=wall_time, source="router")
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(error: Exception) -> None:
        if not ended.done():
            ended.set_exception(error)

    events = build_kv_events(replicas, config, registry=outside.registry)
    pools = ModelPools(
        lambda model: _build_pool(model, config, journal, outside, fail),
        aliases=parse_aliases(foreign.aliases),
        cache_secret=outside.cache_secret or _draw_secret(outside),
        api_key=foreign.api_key,
        events=events,
    )
    watches = [
        ReplicaWatch(Upstream(each, foreign, clock), pools, api_key=foreign.api_key, clock=clock)
        for each in replicas
    ]
    pool = ForeignPool(pools, watches, config.policy)
    questions = Questions(
        pool=pool,
        figures=figures,
        records=Records(),
        journal=journal,
        scrape=Scrape(
            process=outside.name, figures=figures, pool=pool, clock=clock, peers=outside.peers
        ),
        clock=clock,
    )
    passing = PassThrough(
        pools=pools,
        book=Book(questions.records, clock, class_targets(config)),
        figures=figures,
        clock=clock,
        request_timeout=config.request_timeout,
    )
    state = ForeignState(pool=pool, scrape=questions.scrape, clock=clock)
    routes = RouteTable(build_foreign_routes(passing, ForeignModels(pools=pools), state), keys)
    listener = build_listener(config, routes, figures, outside)
    return ForeignGateway(
        listener=listener,
        pools=pools,
        watches=watches,
        questions=questions,
        events=events,
        ended=ended,
    )


def _build_pool(
    model: str,
    config: GatewayConfig,
    journal: Journal,
    outside: Outside,
    fail: Callable[[Exception], None],
) -> tuple[Router, Traffic]:
    router = _build_router(config, outside.random_bits(64))
    traffic = Traffic(
        router,
        replicas=ForeignReplicas(),
        decisions=Decisions(
            journal=journal,
            registry=outside.registry,
            clock=outside.clock,
            policy=config.policy,
        ),
        figures=EngineFigures(outside.registry),
        clock=outside.clock,
        loop=asyncio.get_running_loop(),
        on_fault=fail,
    )
    outside.peers.join(model, router, traffic.feed)
    return router, traffic


def _draw_secret(outside: Outside) -> bytes:
    return outside.random_bits(8 * _SECRET_BYTES).to_bytes(_SECRET_BYTES)


def build_foreign_routes(
    passing: PassThrough, models: ForeignModels, state: ForeignState
) -> tuple[Route, ...]:
    """Return every route. What is not marked public needs a key."""
    return (
        *(Route("POST", path, passing.serve) for path in PASSED_PATHS),
        Route("GET", "/v1/models", models.models),
        Route("GET", MODELS_PATH, models.one_model),
        Route("GET", "/live", state.live, public=True),
        Route("GET", "/ready", state.health, public=True),
        Route("GET", "/health", state.health, public=True),
        Route("GET", "/metrics", state.metrics),
    )


def _build_router(config: GatewayConfig, seed: int) -> Router:
    limits = RouterLimits(
        max_waiting=config.max_waiting,
        max_wait=config.max_wait,
        max_outstanding=config.max_outstanding,
        max_migrations=config.max_migrations,
        max_retries=config.max_retries,
        retry_share=config.retry_share,
        retry_pause=config.retry_pause_ms / 1000,
        fair_queue=config.fair_queue,
        discount_claims=config.discount_claims,
    )
    return Router(limits, Canaries(Weighted(build_policy(config.policy, seed))), seed=seed)
