"""The front door: request ids, methods that every route has, tasks, and the count of answers."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import (
    AuthenticationFailed,
    MethodNotAllowed,
    NotReady,
    RequestError,
    UnsupportedMediaType,
)
from headrace.server.gateway.http.messages import JSON, Response, error_response
from headrace.server.gateway.peers import ALONE
from headrace.server.keys import LOOK_SECONDS, KeySeats

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from headrace.clock import Clock
    from headrace.server.gateway.figures import Figures
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest, RequestHead
    from headrace.server.gateway.peers import Peers
    from headrace.server.gateway.routes import Admitted, RouteTable
    from headrace.types import Seconds

_LOG = logging.getLogger(__name__)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_ID_BITS = 128
CLIENT_LEFT = 499  # nginx's number, in metrics only


class _Looked(NamedTuple):
    """The head that was looked at last, when, and what was found."""

    head: RequestHead
    admitted: Admitted
    at: Seconds


class Front:
    """Between the listener and the routes."""

    def __init__(
        self,
        routes: RouteTable,
        *,
        figures: Figures,
        clock: Clock,
        random_bits: Callable[[int], int],
        peers: Peers = ALONE,
    ) -> None:
        self._routes = routes
        self._seats = KeySeats(peers.held)
        peers.count(self._seats.held)
        self._figures = figures
        self._clock = clock
        self._random_bits = random_bits
        self._last: _Looked | None = None

    def refuse(self, head: RequestHead) -> RequestError | None:
        """Refuse a request by its head."""
        try:
            self._last = _Looked(head, self._routes.admit(head), self._clock.now())
        except RequestError as error:
            return error
        return None

    def serve(self, request: HttpRequest, exchange: Exchange) -> None:
        """Answer a request that the route table did not refuse."""
        head = request.head
        try:
            route, principal = self._admitted(head)
            self._seats.take(principal)
        except RequestError as error:  # the key was revoked meanwhile, or has too much open
            self.refused(error, exchange)
            return
        exchange.context.principal = principal
        self._open(exchange, route.path, head.headers.get(b"x-request-id", b""))
        if head.method == "OPTIONS":
            allow = route.allow.encode()
            exchange.reply(Response(200, b"", JSON, ((b"allow", allow),)))
            return
        if head.method == "POST":
            _check_media_type(head.headers.get(b"content-type", b""))
        route.serve(request, exchange)

    def refused(self, error: RequestError, exchange: Exchange) -> None:
        """Answer what was no request, or was refused by its head."""
        self._open(exchange, "_refused", b"")
        if isinstance(error, MethodNotAllowed):
            exchange.context.headers.append((b"allow", error.allow.encode()))
        if isinstance(error, AuthenticationFailed):
            self._figures.key_refused(error.code)
            exchange.context.headers.append((b"www-authenticate", b"Bearer"))
        exchange.reply(error_response(error))

    def _admitted(self, head: RequestHead) -> Admitted:
        """Look again only if the body took longer than a key file's change may take to be seen."""
        last = self._last
        if last is not None and last.head is head and self._clock.now() - last.at < LOOK_SECONDS:
            return last.admitted
        return self._routes.admit(head)

    def _open(self, exchange: Exchange, route: str, client_id: bytes) -> None:
        own_id = b"%032x" % self._random_bits(_ID_BITS)
        if client_id and _REQUEST_ID.fullmatch(client_id) is None:
            client_id = b""
        context = exchange.context
        context.headers.append((b"x-request-id", client_id or own_id))
        context.request_id = own_id.decode()
        context.client_request_id = client_id.decode()
        context.arrived_at = since = self._clock.now()

        def count(ended: Exchange) -> None:
            self._seats.leave(context.principal)
            seconds = self._clock.now() - since
            self._figures.answered(route, ended.status or CLIENT_LEFT, seconds)

        exchange.on_end = count


class Tasks:
    """Coroutines that answer requests: one task each, cancelled when its client leaves."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None

    async def run(self, until: asyncio.Future[None]) -> None:
        """Hold the tasks until ``until`` is done; raise what it raises."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.wait((until,))
            self._group = None
        until.result()

    def spawn(self, answer: Coroutine[None, None, None], exchange: Exchange) -> None:
        """Run ``answer``; what it raises becomes the response."""
        if self._group is None:
            answer.close()
            raise NotReady("the server is shutting down")
        task = self._group.create_task(_guard(answer, exchange))

        def cancel() -> None:
            task.cancel()

        exchange.on_gone = cancel


async def _guard(answer: Coroutine[None, None, None], exchange: Exchange) -> None:
    try:
        await answer
    except RequestError as error:
        exchange.fail(error)
    except Exception:
        _LOG.exception("a request failed")
        exchange.fail(RequestError("internal error"))


def _check_media_type(content_type: bytes) -> None:
    """Demand JSON by name: a browser cannot send that to another site unasked (no CSRF)."""
    if content_type == JSON:
        return
    media_type = content_type.split(b";", 1)[0].strip().lower()
    if media_type != JSON:
        raise UnsupportedMediaType("send the body as content-type: application/json")
