"""Whether a foreign replica answers, and which models it serves: looked at again and again.

GET /v1/models says what is served; GET /health, where there is one, that it works; GET /metrics,
where there is one, what it has to do and whether it does it. A refused connection is the end of it
at once; silence is so only after some looks in a row, and only while none of its streams brings
anything either: a busy server may be slow to say how it is. One that serves another model than
before is quarantined: its URL may have been given to somebody else.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.monitoring.logging import event as log_event
from headrace.server.gateway.foreign.cards import difference
from headrace.server.gateway.foreign.metrics import ProgressWatch
from headrace.server.gateway.foreign.probe import Probe, Unwell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.clock import Clock
    from headrace.server.gateway.foreign.cards import ModelCard
    from headrace.server.gateway.foreign.metrics import ServerLoad
    from headrace.server.gateway.foreign.upstream import Upstream
    from headrace.types import Seconds

_LOG = logging.getLogger(__name__)


class Quarantined(Unwell):
    """It is not what it was."""


class Pools(Protocol):
    """Who is told."""

    def ready(self, upstream: Upstream, cards: Mapping[str, ModelCard]) -> None:
        """It answers, and serves these models."""
        ...

    def lost(self, upstream: Upstream, reason: str) -> None:
        """It does not answer any more."""
        ...

    def requests_at(self, upstream: Upstream) -> int:
        """Our requests there."""
        ...

    def loaded(self, upstream: Upstream, num_others: int) -> None:
        """It has so many requests that did not come from here."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a replica stands. ``reason`` says why it is not ready, empty while it is."""

    since: Seconds
    reason: str = ""
    is_quarantined: bool = False


class ReplicaWatch:
    """Looks at one replica. ``load`` is what its metrics said last, None if it tells nothing."""

    def __init__(self, upstream: Upstream, pools: Pools, *, api_key: str, clock: Clock) -> None:
        self.upstream = upstream
        self.standing = Standing(since=clock.now(), reason="not asked yet")
        self.load: ServerLoad | None = None
        self._probe = Probe(upstream, api_key=api_key)
        self._pools = pools
        self._clock = clock
        self._models: tuple[str, ...] | None = None  # None while it is not ready
        self._known: dict[str, ModelCard] = {}  # what it served when it was first seen, and since
        self._progress = ProgressWatch()
        self._num_failures = 0
        upstream.on_refused = self._found_refused

    @property
    def name(self) -> str:
        """The replica's."""
        return self.upstream.replica.name

    @property
    def reason(self) -> str:
        """Why it is not ready, empty while it is."""
        return self.standing.reason

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
        begun, had_load = self._clock.now(), self.load is not None
        num_ours = self._pools.requests_at(self.upstream)
        try:
            cards = await self._probe.models()
            self._identify(cards)
            self.load = await self._probe.load()
            self._check_progress()
        except Unwell as error:
            self._found_unwell(error, begun)
        else:
            self._found_well(cards)
        if self._models is not None and (self.load is not None or had_load):
            ours = max(num_ours, self._pools.requests_at(self.upstream))
            seen = 0 if self.load is None else self.load.requests
            self._pools.loaded(self.upstream, max(0, seen - ours))

    def _identify(self, cards: Mapping[str, ModelCard]) -> None:
        """See that it is still the replica that it was."""
        changed = difference(self._known, cards) if self._known else ""
        if changed and not self.upstream.config.follow_models:
            raise Quarantined(
                f"quarantined: {changed}; if that is meant, restart the gateway "
                "or set foreign.follow_models",
                sure=True,
            )
        self._known = dict(cards) if changed else {**cards, **self._known}

    def _check_progress(self) -> None:
        load = self.load
        if load is None:
            return
        limit = self.upstream.config.stuck_after
        if self._progress.stuck_for(load, self._clock.now()) >= limit:
            raise Unwell(
                f"hung: requests run there and nothing was computed for {limit:g} s", sure=True
            )

    def _found_well(self, cards: Mapping[str, ModelCard]) -> None:
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
        self._models = models
        self.standing = Standing(since=self._clock.now())
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
                self._fall(reason, is_quarantined=isinstance(error, Quarantined))
            return
        heard = error.silent and self.upstream.last_heard > begun
        is_patient = heard or self._num_failures < self.upstream.config.poll_failures
        if error.sure or not is_patient:
            self._lose(reason, is_quarantined=isinstance(error, Quarantined))

    def _found_refused(self, reason: str) -> None:
        """Some call found nobody there: that is sooner known than by looking."""
        if self._models is not None:
            self._lose(reason)

    def _lose(self, reason: str, *, is_quarantined: bool = False) -> None:
        url = self.upstream.replica.url
        log_event(_LOG, logging.WARNING, "replica is not used any more", replica=url, reason=reason)
        self._fall(reason, is_quarantined=is_quarantined)
        self._pools.lost(self.upstream, reason)

    def _fall(self, reason: str, *, is_quarantined: bool) -> None:
        self._models = None
        self.load = None
        self._probe.renew()
        self.standing = Standing(
            since=self._clock.now(), reason=reason, is_quarantined=is_quarantined
        )
