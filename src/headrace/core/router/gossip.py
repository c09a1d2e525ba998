"""Gossip: what gateways on one port tell each other, so that each decides as if it saw all.

Every gateway says the whole of its own state again and again (``Saying``): what is lost or comes
twice makes no difference, and there is nothing to repair. Two kinds of figures are in it. *Levels*
(load on replicas, open requests of keys, connections) are added up over the gateways that were
heard of lately. *Service* of tenants is counted from the start of a gateway; its growth is handed
on once.

A gateway is named by its **life**: the same place after a restart is another one, and during a
hand-over the old and the new one are both there. Who is silent for ``forget_after`` is taken to be
gone, and its levels with it. Sayings are numbered in each life; older ones are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.core.router.lanes import LaneKey
    from headrace.types import ReplicaId, Seconds, Tokens

GOSSIP_PERIOD: Seconds = 0.01
"""Between two sayings of a gateway with something new.

Four gateways before four simulated L4 (8-billion model, 20 requests/s of 400 tokens, 3 seeds) have
a p95 TTFT of 235 ms with 10 ms, 244 with 20, 258 with 50, 266 without gossip; one gateway: 225.
"""

REPEAT_PERIOD: Seconds = 0.25
"""The same of a gateway with nothing new: it lives, and what was lost comes again."""

FORGET_AFTER: Seconds = 1.0
"""Four sayings lost in a row: that gateway is gone, or hangs and dispatches nothing."""

MAX_LIVES = 64
MAX_REMEMBERED = 1024  # tenants of one gateway


class Load(NamedTuple):
    """What one gateway has on one replica; the fields of ``ReplicaView``."""

    outstanding: int = 0
    prefill_tokens: Tokens = 0
    decoding: int = 0
    context_tokens: Tokens = 0

    def changed(self, gone: Load, come: Load) -> Load:
        """Return this with one part of it replaced."""
        return Load(*(a - b + c for a, b, c in zip(self, gone, come, strict=True)))


NO_LOAD = Load()


@dataclass(frozen=True, slots=True)
class PoolShare:
    """One gateway's part of a pool. ``service`` is work / weight since its life began."""

    loads: Mapping[ReplicaId, Load]
    service: Mapping[LaneKey, float]


NO_SHARE = PoolShare({}, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Saying:
    """All that a gateway says of itself. ``held`` counts scarce places by any name."""

    life: str
    number: int  # counts from 1
    pools: Mapping[str, PoolShare]
    held: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PoolNews:
    """For one pool: new sums of some replicas, and service since the last news."""

    loads: Mapping[ReplicaId, Load]
    service: Mapping[LaneKey, float]


@dataclass(slots=True)
class _Life:
    number: int
    heard_at: Seconds
    pools: dict[str, PoolShare] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)


class Gossip:
    """What the others said. Belongs to one gateway, whose own life it ignores."""

    def __init__(self, life: str, *, forget_after: Seconds = FORGET_AFTER) -> None:
        self.life = life
        self._forget_after = forget_after
        self._lives: dict[str, _Life] = {}
        self._loads: dict[str, dict[ReplicaId, Load]] = {}  # sums, by pool
        self._held: dict[str, int] = {}  # sums

    @property
    def lives(self) -> tuple[str, ...]:
        """The other gateways that count now."""
        return tuple(self._lives)

    def held(self, name: str) -> int:
        """Return how many places of that name all others hold."""
        return self._held.get(name, 0)

    def loads(self, pool: str) -> Mapping[ReplicaId, Load]:
        """Return what all others have on each replica of a pool; none where it is nothing."""
        return self._loads.get(pool, {})

    def hear(self, saying: Saying, now: Seconds) -> dict[str, PoolNews]:
        """Take a saying; return what is new, by pool."""
        if saying.life == self.life:
            return {}
        life = self._lives.get(saying.life)
        if life is None:
            if len(self._lives) >= MAX_LIVES:
                return {}
            life = self._lives[saying.life] = _Life(0, now)
        elif saying.number <= life.number:
            return {}
        knew = life.number > 0 or saying.number == 1
        news: dict[str, PoolNews] = {}
        for pool in dict.fromkeys((*life.pools, *saying.pools)):
            self._take_pool(pool, life, saying.pools.get(pool, NO_SHARE), news, knew=knew)
        self._take_held(life, saying.held)
        life.number, life.heard_at = saying.number, now
        return news

    def expire(self, now: Seconds) -> dict[str, PoolNews]:
        """Forget who was silent too long; return what that changes, by pool."""
        news: dict[str, dict[ReplicaId, Load]] = {}
        for name, life in list(self._lives.items()):
            if now - life.heard_at <= self._forget_after:
                continue
            del self._lives[name]
            self._take_held(life, {})
            for pool, share in life.pools.items():
                news.setdefault(pool, {}).update(self._replace(pool, share.loads, {}))
        return {pool: PoolNews(loads, {}) for pool, loads in news.items() if loads}

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless all sums are those of the lives."""
        loads: dict[str, dict[ReplicaId, Load]] = {}
        held: dict[str, int] = {}
        for life in self._lives.values():
            for name, number in life.held.items():
                held[name] = held.get(name, 0) + number
            for pool, share in life.pools.items():
                sums = loads.setdefault(pool, {})
                for replica, load in share.loads.items():
                    sums[replica] = sums.get(replica, NO_LOAD).changed(NO_LOAD, load)
        summed = {pool: {r: x for r, x in sums.items() if any(x)} for pool, sums in loads.items()}
        summed = {pool: sums for pool, sums in summed.items() if sums}
        if summed != {pool: sums for pool, sums in self._loads.items() if sums}:
            raise InvariantBroken(f"loads {self._loads}, summed {summed}")
        if {name: number for name, number in held.items() if number} != self._held:
            raise InvariantBroken(f"held {self._held}, summed {held}")

    def _take_pool(
        self, pool: str, life: _Life, share: PoolShare, news: dict[str, PoolNews], *, knew: bool
    ) -> None:
        before = life.pools.get(pool, NO_SHARE)
        loads = self._replace(pool, before.loads, share.loads)
        service: dict[LaneKey, float] = {}
        for key, amount in share.service.items():
            last = before.service.get(key, 0.0)
            growth = amount - last if amount >= last else amount  # it had forgotten that tenant
            if growth and knew:
                service[key] = growth
        remembered = {**before.service, **share.service}
        if len(remembered) > MAX_REMEMBERED:
            remembered = dict(share.service)
        life.pools[pool] = PoolShare(share.loads, remembered)
        if loads or service:
            news[pool] = PoolNews(loads, service)

    def _replace(
        self, pool: str, before: Mapping[ReplicaId, Load], after: Mapping[ReplicaId, Load]
    ) -> dict[ReplicaId, Load]:
        """Put one gateway's loads in the place of its last ones; return the sums that changed."""
        sums = self._loads.setdefault(pool, {})
        changed: dict[ReplicaId, Load] = {}
        for replica in dict.fromkeys((*before, *after)):
            gone, come = before.get(replica, NO_LOAD), after.get(replica, NO_LOAD)
            if gone == come:
                continue
            changed[replica] = load = sums.get(replica, NO_LOAD).changed(gone, come)
            if any(load):
                sums[replica] = load
            else:
                sums.pop(replica, None)
        return changed

    def _take_held(self, life: _Life, held: Mapping[str, int]) -> None:
        for name in dict.fromkeys((*life.held, *held)):
            number = self._held.get(name, 0) - life.held.get(name, 0) + held.get(name, 0)
            if number:
                self._held[name] = number
            else:
                self._held.pop(name, None)
        life.held = held
