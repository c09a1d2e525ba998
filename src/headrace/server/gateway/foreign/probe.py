"""Questions to one foreign replica, each a small GET: is it well, what does it serve, its load."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from headrace.errors import ProtocolError
from headrace.server.gateway.foreign.cards import read_cards
from headrace.server.gateway.foreign.metrics import read_load
from headrace.server.gateway.foreign.upstream import Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headrace.server.gateway.foreign.cards import ModelCard
    from headrace.server.gateway.foreign.metrics import ServerLoad
    from headrace.server.gateway.foreign.reading import ResponseHead
    from headrace.server.gateway.foreign.upstream import Upstream

_MAX_BODY_BYTES = 4 * 1024 * 1024
_ABSENT = frozenset((404, 405, 501))


class Unwell(Exception):
    """A look at a replica found it not ready.

    ``silent``: it gave no answer in time. ``sure``: looking again would not show anything else.
    """

    def __init__(self, reason: str, *, silent: bool = False, sure: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent
        self.sure = sure


class Probe:
    """Asks one replica. What it turns out not to have is not asked for again before ``renew``."""

    def __init__(self, upstream: Upstream, *, api_key: str) -> None:
        self._upstream = upstream
        self._api_key = api_key
        self._has_health = True
        self._has_metrics = upstream.config.metrics

    def renew(self) -> None:
        """It was started anew, perhaps with other options."""
        self._has_health = True
        self._has_metrics = self._upstream.config.metrics

    async def models(self) -> Mapping[str, ModelCard]:
        """Return the models that are to be used of those it serves. Raises Unwell."""
        if self._has_health:
            status, _ = await self._get("/health")
            self._has_health = status not in _ABSENT
            if self._has_health and status != 200:
                raise Unwell(f"/health answers with status {status}")
        status, body = await self._get("/v1/models")
        if status != 200:
            raise Unwell(f"/v1/models answers with status {status}")
        return self._chosen(self._read_models(body))

    async def load(self) -> ServerLoad | None:
        """Return what its metrics say, None if nothing: that is no fault."""
        if not self._has_metrics:
            return None
        try:
            status, body = await self._get("/metrics")
        except Unwell:
            return None
        self._has_metrics = status not in _ABSENT
        return read_load(body) if status == 200 else None

    def _read_models(self, body: bytes) -> dict[str, ModelCard]:
        try:
            cards = read_cards(body, self._upstream.replica.server)
        except (msgspec.MsgspecError, RecursionError) as error:
            reason = f"/v1/models is not a list of models: {str(error)[:200]}"
            raise Unwell(reason) from None
        if not cards:
            raise Unwell("/v1/models names no model")
        return cards

    def _chosen(self, cards: Mapping[str, ModelCard]) -> Mapping[str, ModelCard]:
        """Return all models, unless one was named."""
        replica = self._upstream.replica
        if replica.model and replica.model not in cards:
            raise Unwell(f"it serves {_some(cards)} and not {replica.model}", sure=True)
        if replica.model:
            return {replica.model: cards[replica.model]}
        if replica.alias and len(cards) > 1:
            raise Unwell(f"it serves {_some(cards)}: say with model= which is {replica.alias}")
        return cards

    async def _get(self, path: str) -> tuple[int, bytes]:
        upstream, limit = self._upstream, self._upstream.config.poll_timeout
        fetch = _Fetch()
        key = f"authorization: Bearer {self._api_key}\r\n" if self._api_key else ""
        replica = upstream.replica
        head = f"GET {replica.prefix}{path} HTTP/1.1\r\nhost: {replica.authority}\r\n{key}\r\n"
        call = Call((head.encode(), b""), fetch, first_byte_limit=None)
        upstream.send(call)
        try:
            async with asyncio.timeout(limit):
                return await fetch.answer
        except TimeoutError:
            raise Unwell(f"{path} does not answer within {limit:g} s", silent=True) from None
        finally:
            call.cancel()


class _Fetch:
    """Implements Receiver: a small answer as a future."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._body = bytearray()

    def head(self, head: ResponseHead) -> None:
        """See Receiver."""
        self._status = head.status

    def body(self, data: bytes) -> None:
        """See Receiver."""
        self._body += data
        if len(self._body) > _MAX_BODY_BYTES:
            raise ProtocolError(f"an answer of over {_MAX_BODY_BYTES} bytes")

    def end(self) -> None:
        """See Receiver."""
        if not self.answer.done():
            self.answer.set_result((self._status, bytes(self._body)))

    def failed(self, reason: str, *, refused: bool = False) -> None:
        """See Receiver."""
        if not self.answer.done():
            self.answer.set_exception(Unwell(reason))


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")
