"""Whether a foreign replica answers, and which models it serves: looked at again and again.

GET /v1/models says what is served; GET /health, where there is one, that it works. A refused
connection is the end of it at once; silence is so only after some looks in a row, and only while
none of its streams brings anything either: a busy server may be slow to say how it is.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec import Struct

from headrace.errors import ProtocolError
from headrace.monitoring.logging import event as log_event
from headrace.server.gateway.foreign.upstream import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.clock import Clock
    from headrace.server.gateway.foreign.reading import ResponseHead
    from headrace.server.gateway.foreign.upstream import Upstream
    from headrace.types import Seconds

_LOG = logging.getLogger(__name__)
_MAX_BODY_BYTES = 4 * 1024 * 1024
_ABSENT = frozenset((404, 405, 501))


class _Card(Struct):
    id: str


class _ModelList(Struct):
    data: list[msgspec.Raw]


_decode_list = msgspec.json.Decoder(_ModelList).decode
_decode_card = msgspec.json.Decoder(_Card).decode


class Unwell(Exception):
    """A look at a replica found it not ready. ``silent``: it gave no answer in time."""

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent


class Pools(Protocol):
    """Who is told."""

    def ready(self, upstream: Upstream, cards: Mapping[str, msgspec.Raw]) -> None:
        """It answers, and serves these models."""
        ...

    def lost(self, upstream: Upstream, reason: str) -> None:
        """It does not answer any more."""
        ...


class ReplicaWatch:
    """Looks at one replica. ``reason`` says why it is not ready, empty while it is."""

    def __init__(self, upstream: Upstream, pools: Pools, *, api_key: str, clock: Clock) -> None:
        self.upstream = upstream
        self.reason = "not asked yet"
        self.since = clock.now()  # in this state
        self._pools = pools
        self._api_key = api_key
        self._clock = clock
        self._models: tuple[str, ...] | None = None  # None while it is not ready
        self._num_failures = 0
        self._has_health = True
        upstream.on_refused = self._found_refused

    @property
    def name(self) -> str:
        """The replica's."""
        return self.upstream.replica.name

    async def run(self) -> None:
        """Look every ``poll_period``, until cancelled."""
        at = self._clock.now()
        while True:
            await self.look()
            now = self._clock.now()
            at = max(at + self.upstream.config.poll_period, now)
            await asyncio.sleep(at - now)

    async def look(self) -> None:
        """Look once, and tell the pools what has changed."""
        begun = self._clock.now()
        try:
            cards = await self._ask()
        except Unwell as error:
            self._found_unwell(error, begun)
        else:
            self._found_well(cards)

    def _found_well(self, cards: Mapping[str, msgspec.Raw]) -> None:
        self._num_failures = 0
        models = tuple(sorted(cards))
        if models == self._models:
            return
        name = self.name
        if self._models is not None:
            log_event(
                _LOG,
                logging.WARNING,
                "replica serves other models now; what it had cached is forgotten",
                replica=name,
                before=",".join(self._models),
                now=",".join(models),
            )
        else:
            log_event(_LOG, logging.INFO, "replica is ready", replica=name)
        self._enter(models, "")
        self._pools.ready(self.upstream, cards)

    def _found_unwell(self, error: Unwell, begun: Seconds) -> None:
        self._num_failures += 1
        reason = str(error)
        if self._models is None:
            if reason != self.reason:
                log_event(
                    _LOG,
                    logging.WARNING,
                    "replica is not ready",
                    replica=self.upstream.replica.url,
                    reason=reason,
                )
                self._enter(None, reason)
            return
        heard = error.silent and self.upstream.last_heard > begun
        is_patient = heard or self._num_failures < self.upstream.config.poll_failures
        if not is_patient:
            self._lose(reason)

    def _found_refused(self, reason: str) -> None:
        """Some call found nobody there: that is sooner known than by looking."""
        if self._models is not None:
            self._lose(reason)

    def _lose(self, reason: str) -> None:
        url = self.upstream.replica.url
        log_event(_LOG, logging.INFO, "replica does not answer", replica=url, reason=reason)
        self._enter(None, reason)
        self._pools.lost(self.upstream, reason)

    def _enter(self, models: tuple[str, ...] | None, reason: str) -> None:
        self._models = models
        self.reason = reason
        self.since = self._clock.now()

    async def _ask(self) -> Mapping[str, msgspec.Raw]:
        if self._has_health:
            status, _ = await self._get("/health")
            self._has_health = status not in _ABSENT
            if self._has_health and status != 200:
                raise Unwell(f"/health answers with status {status}")
        status, body = await self._get("/v1/models")
        if status != 200:
            raise Unwell(f"/v1/models answers with status {status}")
        return _read_models(body)

    async def _get(self, path: str) -> tuple[int, bytes]:
        upstream, limit = self.upstream, self.upstream.config.poll_timeout
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


def _read_models(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        cards = {_decode_card(card).id: card.copy() for card in _decode_list(body).data}
    except (msgspec.MsgspecError, RecursionError) as error:
        reason = f"/v1/models is not a list of models: {str(error)[:200]}"
        raise Unwell(reason) from None
    if not cards:
        raise Unwell("/v1/models names no model")
    return cards
