"""A gateway process's inside, wired: sockets in front, links behind."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from headrace.clock import unix_time, wall_time
from headrace.core.balancer.registry import build_policy
from headrace.core.router.events import Drain
from headrace.core.router.limits import RouterLimits
from headrace.core.router.machine import Router
from headrace.model.grammar import GrammarCompiler
from headrace.monitoring.engine_figures import EngineFigures
from headrace.monitoring.journal import Journal
from headrace.monitoring.records import Records
from headrace.server.gateway.book import Book
from headrace.server.gateway.completions import Bounds, Completions
from headrace.server.gateway.decisions import Decisions
from headrace.server.gateway.endpoints import MODELS_PATH, ModelEndpoints, StateEndpoints
from headrace.server.gateway.figures import Figures
from headrace.server.gateway.front import Front, Tasks
from headrace.server.gateway.http.listener import Listener
from headrace.server.gateway.members import Membership
from headrace.server.gateway.model import ServedModel
from headrace.server.gateway.peers import ALONE
from headrace.server.gateway.pool import Pool
from headrace.server.gateway.prompting import Prompter, Threads
from headrace.server.gateway.replicas import Replicas
from headrace.server.gateway.routes import Route, RouteTable
from headrace.server.gateway.scrape import Scrape
from headrace.server.gateway.state import Questions
from headrace.server.gateway.structured import GrammarTrial, NoTrial, Structures
from headrace.server.gateway.traffic import Traffic
from headrace.server.gateway.urgency import class_targets

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor

    from headrace.clock import Clock
    from headrace.model.text import TextModel
    from headrace.monitoring.metrics import Registry
    from headrace.server.gateway.config import GatewayConfig
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest
    from headrace.server.gateway.members import KeptLink
    from headrace.server.gateway.peers import Peers
    from headrace.server.gateway.structured import Trial
    from headrace.server.keys import Keys
    from headrace.types import ReplicaId, Seconds

_SECRET_BYTES = 32
_FLUSH_SECONDS = 2.0  # after a drain, for last bytes to leave

AsyncEndpoint: TypeAlias = "Callable[[HttpRequest, Exchange], Coroutine[None, None, None]]"


@dataclass(frozen=True, slots=True)
class Outside:
    """What a gateway takes from outside. ``random_bits(k)`` is like secrets.randbits.

    Without a ``journal`` it keeps its own in memory; without a ``cache_secret`` it draws one.
    """

    clock: Clock
    random_bits: Callable[[int], int]
    registry: Registry
    name: str = "gateway"
    journal: Journal | None = None
    cache_secret: bytes = b""
    peers: Peers = ALONE

    @property
    def figures(self) -> Figures:
        """A new keeper of what the gateway counts."""
        return Figures(self.registry)


class Workers(NamedTuple):
    """Threads for what takes long, apart: a grammar that is hard to try delays no prompt."""

    text: Executor
    grammar: Executor


class Gateway:
    """Serves until drained. Links report to ``traffic`` (it is their LinkEvents)."""

    def __init__(
        self,
        *,
        listener: Listener,
        traffic: Traffic,
        questions: Questions[Pool],
        tasks: Tasks,
        pools: Workers,
        ended: asyncio.Future[None],
    ) -> None:
        self.listener = listener
        self.traffic = traffic
        self.questions = questions
        self._tasks = tasks
        self._pools = pools
        self._ended = ended

    def membership(self, make_link: Callable[[ReplicaId, str], KeptLink]) -> Membership:
        """Return the table of its replicas, empty; ``make_link`` gets name and address of each."""
        return Membership(
            make_link=make_link, traffic=self.traffic, replicas=self.questions.pool.replicas
        )

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
            for pool in self._pools:
                pool.shutdown(wait=False, cancel_futures=True)

    async def drain(self, limit: Seconds) -> None:
        """Take nothing new, finish what was accepted, fail the rest after ``limit`` seconds."""
        self.listener.stop_accepting()
        self.traffic.feed(Drain(limit))
        await self.traffic.drained
        await self.listener.closed(_FLUSH_SECONDS)
        if not self._ended.done():
            self._ended.set_result(None)


def build_gateway(
    config: GatewayConfig,
    *,
    text: TextModel,
    names: tuple[str, ...],
    keys: Keys,
    outside: Outside,
) -> Gateway:
    """Wire a gateway. To be called on the running loop.

    ``names`` are what clients may call the model, the first its name in lists.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(error: Exception) -> None:
        if not ended.done():
            ended.set_exception(error)

    router = _build_router(config, outside.random_bits(64))
    model = _build_model(config, text, names, outside)
    figures = outside.figures
    questions = _build_questions(config, router, model, figures, outside)
    traffic = Traffic(
        router,
        replicas=model.replicas,
        decisions=questions.pool.decisions,
        figures=questions.pool.engines,
        clock=outside.clock,
        loop=asyncio.get_running_loop(),
        on_fault=fail,
    )
    outside.peers.join("", router, traffic.feed)
    workers = Workers(
        ThreadPoolExecutor(config.text_threads, thread_name_prefix="text"),
        ThreadPoolExecutor(1, thread_name_prefix="grammar"),
    )
    tasks = Tasks()
    routes = _build_endpoints(config, model, questions, traffic, workers, tasks, outside)
    return Gateway(
        listener=build_listener(config, RouteTable(routes, keys), figures, outside),
        traffic=traffic,
        questions=questions,
        tasks=tasks,
        pools=workers,
        ended=ended,
    )


def _build_endpoints(
    config: GatewayConfig,
    model: ServedModel,
    questions: Questions[Pool],
    traffic: Traffic,
    workers: Workers,
    tasks: Tasks,
    outside: Outside,
) -> tuple[Route, ...]:
    threads = Threads(workers.text, max_waiting=config.max_in_threads)
    prompter = Prompter(
        model.text, threads, context_length=model.context_length, inline_bytes=config.inline_bytes
    )
    completions = Completions(
        model=model,
        prompter=prompter,
        structures=Structures(_build_trial(config, model.text, workers.grammar, outside)),
        threads=threads,
        generations=traffic.generations,
        figures=questions.figures,
        book=Book(questions.records, outside.clock, class_targets(config)),
        clock=outside.clock,
        random_bits=outside.random_bits,
        bounds=Bounds(
            large_body_bytes=config.large_body_bytes,
            request_timeout=config.request_timeout,
            max_retention=config.max_retention,
        ),
    )
    state = StateEndpoints(
        router=questions.pool.router,
        clock=outside.clock,
        stuck_after=config.stuck_after,
        scrape=questions.scrape,
    )
    models = ModelEndpoints(model=model, prompter=prompter)
    return build_routes(completions, models, state, tasks)


def _build_trial(
    config: GatewayConfig, text: TextModel, worker: Executor, outside: Outside
) -> Trial:
    if not config.structured_output:
        return NoTrial()
    compiler = GrammarCompiler(lambda: text.tokenizer)
    worker.submit(compiler.warm_up)  # what it raises, each use of it raises again
    return GrammarTrial(
        compiler,
        Threads(worker, max_waiting=config.max_in_threads),
        outside.registry,
        outside.clock,
        max_bytes=config.max_grammar_bytes,
        max_seconds=config.grammar_seconds,
    )


def _build_questions(
    config: GatewayConfig, router: Router, model: ServedModel, figures: Figures, outside: Outside
) -> Questions[Pool]:
    """What is kept for people to ask about."""
    journal = outside.journal or Journal(unix_time=wall_time, source="router")
    pool = Pool(
        model=model.names[0],
        router=router,
        replicas=model.replicas,
        decisions=Decisions(
            journal=journal,
            registry=outside.registry,
            clock=outside.clock,
            policy=config.policy,
        ),
        engines=EngineFigures(outside.registry),
    )
    return Questions(
        pool=pool,
        figures=figures,
        records=Records(),
        journal=journal,
        scrape=Scrape(
            process=outside.name,
            figures=figures,
            pool=pool,
            clock=outside.clock,
            peers=outside.peers,
        ),
        clock=outside.clock,
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
        hedge_after=config.hedge_after,
        poison_deaths=config.poison_deaths,
        silent_after=config.silent_after,
        stuck_after=config.stuck_after,
        fair_queue=config.fair_queue,
        discount_claims=config.discount_claims,
        refuse_infeasible=config.refuse_infeasible,
        kv_transfer=config.kv_transfer,
        local_prefill=config.local_prefill,
    )
    return Router(limits, build_policy(config.policy, seed), seed=seed)


def _build_model(
    config: GatewayConfig, text: TextModel, names: tuple[str, ...], outside: Outside
) -> ServedModel:
    secret = outside.cache_secret
    replicas = Replicas(
        cache_secret=secret or outside.random_bits(8 * _SECRET_BYTES).to_bytes(_SECRET_BYTES),
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


def build_listener(
    config: GatewayConfig, routes: RouteTable, figures: Figures, outside: Outside
) -> Listener:
    """Wire what is between sockets and routes."""
    front = Front(
        routes,
        figures=figures,
        clock=outside.clock,
        random_bits=outside.random_bits,
        peers=outside.peers,
    )
    listener = Listener(
        limits=config.http,
        clock=outside.clock,
        application=front,
        count=figures.connections,
        elsewhere=outside.peers.held,
    )
    outside.peers.count(listener.crowd.held)
    return listener


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
