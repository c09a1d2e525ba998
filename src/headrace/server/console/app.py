"""The console process's inside, wired: browsers in front, the admin plane and the server behind."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from headrace.clock import MonotonicClock, wall_time
from headrace.errors import MethodNotAllowed, RequestError, RouteNotFound
from headrace.server.console.endpoints import EXPLAIN, Endpoints
from headrace.server.console.feed import StateFeed
from headrace.server.console.guard import Guard
from headrace.server.console.page import load_page
from headrace.server.console.upstream import at_socket, at_url
from headrace.server.gateway.front import Tasks
from headrace.server.gateway.http.limits import HttpLimits
from headrace.server.gateway.http.listener import Listener
from headrace.server.gateway.http.messages import error_response

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Mapping

    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest, RequestHead, Response
    from headrace.types import Seconds

    Endpoint: TypeAlias = Callable[[HttpRequest, Exchange], Coroutine[None, None, None]]

STATE_SECONDS: Seconds = 0.5
"""Between two states that a tab is sent."""

LIMITS = HttpLimits(max_connections=64, max_body_bytes=1 << 20)

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint under /api. A ``path`` that ends in a slash stands for all below it."""

    method: str
    path: str
    answer: Endpoint

    def matches(self, path: str) -> bool:
        """Whether this route is meant."""
        return path == self.path or (self.path.endswith("/") and path.startswith(self.path))


class Site:
    """Implements Application: the page's files, and the routes behind the token."""

    def __init__(
        self,
        *,
        guard: Guard,
        page: Mapping[str, Response],
        routes: tuple[Route, ...],
        feed: StateFeed,
        tasks: Tasks,
    ) -> None:
        self._guard = guard
        self._page = page
        self._routes = routes
        self._feed = feed
        self._tasks = tasks

    def refuse(self, head: RequestHead) -> RequestError | None:
        """See Application."""
        refusal = self._guard.refuse(head)
        if refusal is not None:
            return refusal
        allowed = self._methods(head.path)
        if not allowed:
            return RouteNotFound(f"there is nothing at {head.path[:200]}")
        if head.method not in allowed:
            error = MethodNotAllowed(f"{head.path[:200]} takes {', '.join(allowed)}")
            error.allow = ", ".join(allowed)
            return error
        return None

    def serve(self, request: HttpRequest, exchange: Exchange) -> None:
        """See Application."""
        exchange.context.headers.extend(_HEADERS)
        path = request.head.path
        if path in self._page:
            exchange.reply(self._page[path])
        elif path == "/api/events":
            self._feed.open(exchange)
        else:
            route = next(each for each in self._routes if each.matches(path))
            self._tasks.spawn(route.answer(request, exchange), exchange)

    def refused(self, error: RequestError, exchange: Exchange) -> None:
        """See Application."""
        exchange.context.headers.extend(_HEADERS)
        if isinstance(error, MethodNotAllowed):
            exchange.context.headers.append((b"allow", error.allow.encode()))
        exchange.reply(error_response(error))

    def _methods(self, path: str) -> tuple[str, ...]:
        if path in self._page:
            return ("GET", "HEAD")
        if path == "/api/events":
            return ("GET",)
        return tuple(route.method for route in self._routes if route.matches(path))


class Console:
    """Serves until told to end."""

    def __init__(self, *, listener: Listener, feed: StateFeed, tasks: Tasks) -> None:
        self._listener = listener
        self._feed = feed
        self._tasks = tasks

    async def serve(self, sock: socket.socket, stop: asyncio.Event) -> None:
        """Accept connections on a bound socket until ``stop`` is set."""
        ended = asyncio.get_running_loop().create_future()
        await self._listener.start(sock)
        try:
            async with asyncio.TaskGroup() as group:
                feeding = group.create_task(self._feed.run())
                group.create_task(self._tasks.run(ended))
                await stop.wait()
                feeding.cancel()
                self._listener.close()
                ended.set_result(None)
        finally:
            self._listener.close()


def build_console(
    *,
    token: str,
    port: int,
    admin: str,
    server_url: str,
    state_seconds: Seconds = STATE_SECONDS,
) -> Console:
    """Wire a console. ``port``: its own; ``admin``: the admin socket's path. Raises UsageError."""
    admin_plane = at_socket(admin, "the server")
    endpoints = Endpoints(admin_plane, at_url(server_url, "the server"))
    feed = StateFeed(admin_plane, period=state_seconds, wall_time=wall_time)
    tasks = Tasks()
    site = Site(
        guard=Guard(token=token, port=port),
        page=load_page(),
        routes=build_routes(endpoints),
        feed=feed,
        tasks=tasks,
    )
    listener = Listener(
        limits=LIMITS, clock=MonotonicClock(), application=site, count=lambda number: None
    )
    return Console(listener=listener, feed=feed, tasks=tasks)


def build_routes(endpoints: Endpoints) -> tuple[Route, ...]:
    """Return every route but the events."""
    return (
        Route("GET", "/api/state", endpoints.state),
        Route("GET", "/api/journal", endpoints.journal),
        Route("GET", EXPLAIN, endpoints.explain),
        Route("POST", "/api/drain", endpoints.drain),
        Route("POST", "/api/scale", endpoints.scale),
        Route("POST", "/api/chat", endpoints.chat),
    )
