"""The admin plane: routes over HTTP on a Unix socket, whose mode says who may use it.

The controller answers what it knows and carries out orders; what only the gateway knows is asked
there. Nothing of this is reachable from the data port.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from headrace.core.autoscaler.events import Stage
from headrace.errors import InvalidRequest, MethodNotAllowed, NotReady, RequestError, RouteNotFound
from headrace.monitoring.metrics import CONTENT_TYPE
from headrace.monitoring.shapes import Done, DrainOrder, RestartOrder, ScaleOrder
from headrace.server.admin.figures import merged, own_figures
from headrace.server.admin.state import About, server_state
from headrace.server.gateway.http.limits import HttpLimits
from headrace.server.gateway.http.listener import Listener
from headrace.server.gateway.http.messages import Response, error_response
from headrace.server.replica_range import ReplicaRange, objection
from headrace.types import ReplicaId

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Collection

    from headrace.clock import Clock
    from headrace.monitoring.shapes import GatewayRow, GatewayState
    from headrace.server.admin.gateways import AllGateways
    from headrace.server.admin.journal import MergedJournal
    from headrace.server.controller import Controller
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest, RequestHead

LIMITS = HttpLimits(max_connections=64, max_body_bytes=64 * 1024)
"""Of this plane: a few people and one console."""

Endpoint: TypeAlias = "Callable[[HttpRequest], Awaitable[Response]]"
OrderT = TypeVar("OrderT")

_AFTER = re.compile(r"(?:after=([0-9]{1,18}))?")

_log = logging.getLogger(__name__)


class Restarts(Protocol):
    """Who restarts processes one after the other, and knows the gateways'. ``Restarter`` is one."""

    @property
    def progress(self) -> str:
        """What it is at, empty if nothing."""
        ...

    def begin(self, what: str) -> str:
        """Restart the ``gateways`` or ``replicas``; say what happens. Raises RequestError."""
        ...

    def gateways(self) -> list[GatewayRow]:
        """Return all gateway processes."""
        ...


class AdminPlane:
    """Implements Application."""

    def __init__(
        self,
        controller: Controller,
        *,
        gateways: AllGateways,
        journal: MergedJournal,
        restarts: Restarts,
        about: About,
        clock: Clock,
    ) -> None:
        self.journal = journal
        self._controller = controller
        self._gateways = gateways
        self._restarts = restarts
        self._about = about
        self._clock = clock
        self._group: asyncio.TaskGroup | None = None
        self._routes: dict[str, tuple[str, Endpoint]] = {
            "/state": ("GET", self._state),
            "/metrics": ("GET", self._metrics),
            "/journal": ("GET", self._journal),
            "/requests": ("GET", self._requests),
            "/explain/*": ("GET", self._explain),
            "/drain": ("POST", self._drain),
            "/scale": ("POST", self._scale),
            "/restart": ("POST", self._restart),
        }

    async def run(self, listening: socket.socket) -> None:
        """Answer on a bound socket until cancelled."""
        listener = Listener(
            limits=LIMITS, clock=self._clock, application=self, count=lambda number: None
        )
        await listener.start(listening)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await asyncio.Event().wait()
        finally:
            listener.close()

    # Application

    def refuse(self, head: RequestHead) -> RequestError | None:
        """See Application."""
        found = self._find(head.path)
        if found is None:
            return RouteNotFound(f"there is nothing at {head.path[:200]} of the admin plane")
        if head.method != found[0]:
            error = MethodNotAllowed(f"{head.path[:200]} takes {found[0]}, not {head.method}")
            error.allow = found[0]
            return error
        return None

    def refused(self, error: RequestError, exchange: Exchange) -> None:
        """See Application."""
        exchange.reply(error_response(error))

    def serve(self, request: HttpRequest, exchange: Exchange) -> None:
        """See Application."""
        found = self._find(request.head.path)
        assert found is not None  # refused by its head
        assert self._group is not None  # there are connections only while it runs
        task = self._group.create_task(_answer(found[1], request, exchange))

        def cancel() -> None:
            task.cancel()

        exchange.on_gone = cancel

    def _find(self, path: str) -> tuple[str, Endpoint] | None:
        """Return method and endpoint. A route that ends in a star stands for all below it."""
        top, _, rest = path[1:].partition("/")
        return self._routes.get(f"/{top}/*" if rest else path)

    # Questions

    async def _state(self, request: HttpRequest) -> Response:
        state = server_state(
            self._about, self._controller, await self._gateway_state(), now=self._clock.now()
        )
        restarts = self._restarts
        state = replace(state, gateways=restarts.gateways(), restarting=restarts.progress)
        return Response(200, msgspec.json.encode(state))

    async def _gateway_state(self) -> GatewayState | None:
        """The gateways' part, None while none answers."""
        try:
            return await self._gateways.state()
        except (RequestError, msgspec.MsgspecError) as error:
            _log.info("no state of the gateway: %s", error)
            return None

    async def _metrics(self, request: HttpRequest) -> Response:
        own = own_figures(self._controller, now=self._clock.now())
        try:
            own = merged(await self._gateways.metrics(), own)
        except RequestError:
            _log.info("metrics without those of the gateway")
        return Response(200, own.encode(), CONTENT_TYPE.encode())

    async def _journal(self, request: HttpRequest) -> Response:
        match = _AFTER.fullmatch(request.head.query)
        if match is None:
            raise InvalidRequest("the query may be after=NUMBER and nothing else")
        return Response(200, msgspec.json.encode(await self.journal.after(int(match[1] or 0))))

    async def _requests(self, request: HttpRequest) -> Response:
        return Response(200, msgspec.json.encode(await self._gateways.requests()))

    async def _explain(self, request: HttpRequest) -> Response:
        head = request.head
        path = f"{head.path}?{head.query}" if head.query else head.path
        answer = await self._gateways.find(path)
        return Response(answer.status, answer.body, answer.content_type.encode())

    # Orders

    async def _drain(self, request: HttpRequest) -> Response:
        order = _decoded(request, DrainOrder)
        self._must_decide()
        replica = ReplicaId(order.replica)
        stages = self._controller.autoscaler.stages()
        if replica not in stages:
            raise RouteNotFound(f"there is no replica {replica[:64]!r} here: {_names(stages)}")
        stage, _ = stages[replica]
        if stage is Stage.STOPPING:
            raise InvalidRequest(f"{replica} is stopping already")
        self._controller.drain(replica, cancel=order.cancel)
        if order.cancel:
            return _done(f"{replica} takes requests again")
        return _done(f"{replica} takes nothing new and ends when its streams have ended")

    async def _scale(self, request: HttpRequest) -> Response:
        order = _decoded(request, ScaleOrder)
        wanted = ReplicaRange(order.floor, order.ceiling)
        problem = objection(wanted)
        if problem is not None:
            raise InvalidRequest(problem)
        self._must_decide()
        autoscaler = self._controller.autoscaler
        present = autoscaler.present
        if autoscaler.ceiling == 0:
            raise InvalidRequest("these replicas are run elsewhere: start and end them there")
        if self._about.has_roles:
            raise InvalidRequest(
                "these replicas have roles and are not scaled: start the server with other --roles"
            )
        self._controller.set_range(*wanted)
        return _done(f"the range of replicas is {wanted} now; {present} there or starting")

    async def _restart(self, request: HttpRequest) -> Response:
        order = _decoded(request, RestartOrder)
        self._must_decide()
        return _done(self._restarts.begin(order.what))

    def _must_decide(self) -> None:
        if self._controller.is_closed:
            raise NotReady("the server is ending and takes no orders")


async def _answer(endpoint: Endpoint, request: HttpRequest, exchange: Exchange) -> None:
    """Run an endpoint: the boundary round one request."""
    try:
        exchange.reply(await endpoint(request))
    except RequestError as error:
        exchange.fail(error)
    except Exception:
        _log.exception("an admin request failed: %s", request.head.path)
        exchange.fail(RequestError("internal error"))


def _decoded(request: HttpRequest, order: type[OrderT]) -> OrderT:
    try:
        return msgspec.json.decode(request.body, type=order)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the body: {error}") from None


def _done(message: str) -> Response:
    return Response(200, msgspec.json.encode(Done(message=message)))


def _names(names: Collection[str]) -> str:
    return f"there are {', '.join(names)}" if names else "it runs none"
