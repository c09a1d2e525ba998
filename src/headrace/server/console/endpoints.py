"""What is behind /api: answers of the admin plane as they are, and chats with the server.

Nothing is decoded here: the page reads the shapes of monitoring/shapes.py itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest, UnsupportedMediaType
from headrace.server.gateway.http.messages import JSON, Response

if TYPE_CHECKING:
    from headrace.server.console.upstream import Fetched, Upstream
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest
    from headrace.types import Seconds

EXPLAIN = "/api/explain/"
CHAT_SILENCE_SECONDS: Seconds = 120.0
"""A server that streams says something every 15 s (HttpLimits.ping_period)."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+=@#~%-]{1,200}")
_NUMBER = re.compile(r"after=([0-9]{1,18})")
_KEY = re.compile(rb"[!-~]{0,512}")
_OK = 200


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The routes' work. Each raises RequestErrors."""

    admin: Upstream
    server: Upstream

    async def state(self, request: HttpRequest, exchange: Exchange) -> None:
        """GET /api/state."""
        exchange.reply(_response(await self.admin.fetch("GET", "/state")))

    async def explain(self, request: HttpRequest, exchange: Exchange) -> None:
        """GET /api/explain/ID."""
        request_id = request.head.path.removeprefix(EXPLAIN)
        if _REQUEST_ID.fullmatch(request_id) is None:
            raise InvalidRequest("that is no request id: they look like chatcmpl-0123abcd")
        exchange.reply(_response(await self.admin.fetch("GET", f"/explain/{request_id}")))

    async def journal(self, request: HttpRequest, exchange: Exchange) -> None:
        """GET /api/journal?after=N."""
        query = request.head.query
        match = _NUMBER.fullmatch(query)
        if query and match is None:
            raise InvalidRequest("the journal takes ?after=NUMBER and nothing else")
        after = int(match[1]) if match else 0
        exchange.reply(_response(await self.admin.fetch("GET", f"/journal?after={after}")))

    async def drain(self, request: HttpRequest, exchange: Exchange) -> None:
        """POST /api/drain."""
        await self._order("/drain", request, exchange)

    async def scale(self, request: HttpRequest, exchange: Exchange) -> None:
        """POST /api/scale."""
        await self._order("/scale", request, exchange)

    async def _order(self, path: str, request: HttpRequest, exchange: Exchange) -> None:
        exchange.reply(_response(await self.admin.fetch("POST", path, _json_body(request))))

    async def chat(self, request: HttpRequest, exchange: Exchange) -> None:
        """POST /api/chat: the server's own answer, byte for byte. Its key: x-headrace-key."""
        key = request.head.headers.get(b"x-headrace-key", b"")
        if _KEY.fullmatch(key) is None:
            raise InvalidRequest("an API key is made of printable ASCII characters")
        async with self.server.ask(
            "POST",
            "/v1/chat/completions",
            _json_body(request),
            silence=CHAT_SILENCE_SECONDS,
            key=key.decode("ascii"),
        ) as answer:
            if answer.status != _OK:
                body = await answer.whole()
                exchange.reply(Response(answer.status, body, answer.content_type or JSON))
                return
            async for piece in answer.pieces():
                exchange.write(piece, answer.content_type)
            exchange.end()


def _response(fetched: Fetched) -> Response:
    return Response(fetched.status, fetched.body, fetched.content_type or JSON)


def _json_body(request: HttpRequest) -> bytes:
    media_type = request.head.headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
    if media_type != JSON:
        raise UnsupportedMediaType("send the body as content-type: application/json")
    if not request.body:
        raise InvalidRequest("the body is empty")
    return bytes(request.body)
