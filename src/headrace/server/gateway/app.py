"""A gateway process's inside, wired: sockets in front, links behind."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from headrace.clock import unix_time
from headrace.core.router.machine import Router, RouterLimits
from headrace.server.gateway.completions import Bounds, Completions
from headrace.server.gateway.endpoints import MODELS_PATH, ModelEndpoints, StateEndpoints
from headrace.server.gateway.figures import Figures
from headrace.server.gateway.front import Front, Tasks
from headrace.server.gateway.http.listener import Listener
from headrace.server.gateway.model import ServedModel
from headrace.server.gateway.prompting import Prompter, Threads
from headrace.server.gateway.replicas import Replicas
from headrace.server.gateway.routes import Keys, Route, RouteTable
from headrace.server.gateway.traffic import Traffic

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Sequence
    from concurrent.futures import Executor

    from headrace.clock import Clock
    from headrace.model.text import TextModel
    from headrace.monitoring.metrics import Registry
    from headrace.server.gateway.config import GatewayConfig
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest
    from headrace.types import Seconds

_SECRET_BYTES = 32
_FLUSH_SECONDS = 2.0  # after a drain, for last bytes to leave

AsyncEndpoint: TypeAlias = "Callable[[HttpRequest, Exchange], Coroutine[None, None, None]]"


@dataclass(frozen=True, slots=True)
class Outside:
    """What a gateway takes from outside. ``random_bits(k)`` is like secrets.randbits."""

    clock: Clock
    random_bits: Callable[[int], int]
    registry: Registry

    @property
    def figures(self) -> Figures:
        """What the gateway counts."""
        return Figures(self.registry)


class Gateway:
    """Serves until drained. Links report to ``traffic`` (it is their LinkEvents)."""

    def __init__(
        self,
        *,
        listener: Listener,
        traffic: Traffic,
        tasks: Tasks,
        pool: Executor,
        ended: asyncio.Future[None],
    ) -> None:
        self.listener = listener
        self.traffic = traffic
        self._tasks = tasks
        self._pool = pool
        self._ended = ended

    async def serve(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket; return when ``drain`` is over.

        Raises what killed the Router, if something did (M5).
        """
        await self.listener.start(sock)
        try:
            await self._tasks.run(self._ended)
        finally:
            self.traffic.close()
            self.listener.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def drain(self, limit: Seconds) -> None:
        """Take nothing new, finish what was accepted, fail the rest after ``limit`` seconds."""
        self.listener.stop_accepting()
        self.traffic.drain(limit)
        await self.traffic.drained
        await self.listener.closed(_FLUSH_SECONDS)
        if not self._ended.done():
            self._ended.set_result(None)


def build_gateway(
    config: GatewayConfig,
    *,
    text: TextModel,
    names: tuple[str, ...],
    api_keys: Sequence[str],
    outside: Outside,
) -> Gateway:
    """Wire a gateway. To be called on the running loop.

    ``names`` are what clients may call the model, the first its name in lists. Without
    ``api_keys`` everyone may come in.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def fail(error: Exception) -> None:
        if not ended.done():
            ended.set_exception(error)

    router = _build_router(config)
    model = _build_model(config, text, names, outside)
    traffic = Traffic(
        router,
        replicas=model.replicas,
        registry=outside.registry,
        clock=outside.clock,
        loop=loop,
        on_fault=fail,
    )
    pool = ThreadPoolExecutor(config.text_threads, thread_name_prefix="text")
    threads = Threads(pool, max_waiting=config.max_in_threads)
    prompter = Prompter(
        text, threads, context_length=model.context_length, inline_bytes=config.inline_bytes
    )
    completions = Completions(
        model=model,
        prompter=prompter,
        threads=threads,
        traffic=traffic,
        figures=outside.figures,
        clock=outside.clock,
        random_bits=outside.random_bits,
        bounds=Bounds(
            large_body_bytes=config.large_body_bytes, request_timeout=config.request_timeout
        ),
    )
    state = StateEndpoints(
        router=router,
        clock=outside.clock,
        stuck_after=config.stuck_after,
        registry=outside.registry,
    )
    tasks = Tasks()
    models = ModelEndpoints(model=model, prompter=prompter)
    routes = RouteTable(build_routes(completions, models, state, tasks), Keys(api_keys))
    listener = _build_listener(config, routes, outside)
    return Gateway(listener=listener, traffic=traffic, tasks=tasks, pool=pool, ended=ended)


def _build_router(config: GatewayConfig) -> Router:
    return Router(
        RouterLimits(
            max_waiting=config.max_waiting,
            max_wait=config.max_wait,
            max_outstanding=config.max_outstanding,
        )
    )


def _build_model(
    config: GatewayConfig, text: TextModel, names: tuple[str, ...], outside: Outside
) -> ServedModel:
    replicas = Replicas(
        cache_secret=outside.random_bits(8 * _SECRET_BYTES).to_bytes(_SECRET_BYTES),
        vocab_size=text.tokenizer.vocab_size,
    )
    return ServedModel(
        text,
        names=names,
        replicas=replicas,
        max_model_len=config.max_model_len or None,
        default_max_tokens=config.default_max_tokens or None,
        created=unix_time(),
    )


def _build_listener(config: GatewayConfig, routes: RouteTable, outside: Outside) -> Listener:
    front = Front(
        routes, figures=outside.figures, clock=outside.clock, random_bits=outside.random_bits
    )
    return Listener(
        limits=config.http,
        clock=outside.clock,
        application=front,
        count=outside.figures.connections,
    )


def build_routes(
    completions: Completions, models: ModelEndpoints, state: StateEndpoints, tasks: Tasks
) -> tuple[Route, ...]:
    """Return every route. What is not marked public needs a key."""

    def task(endpoint: AsyncEndpoint) -> Callable[[HttpRequest, Exchange], None]:
        return lambda request, exchange: tasks.spawn(endpoint(request, exchange), exchange)

    return (
        Route("POST", "/v1/chat/completions", task(completions.chat)),
        Route("POST", "/v1/completions", task(completions.complete)),
        Route("POST", "/tokenize", task(models.tokenize)),
        Route("POST", "/detokenize", task(models.detokenize)),
        Route("GET", "/v1/models", models.models),
        Route("GET", MODELS_PATH, models.one_model),
        Route("GET", "/live", state.live, public=True),
        Route("GET", "/ready", state.ready, public=True),
        Route("GET", "/health", state.health, public=True),
        Route("GET", "/metrics", state.metrics),
    )
