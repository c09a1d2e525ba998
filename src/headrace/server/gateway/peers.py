"""The other gateways on the same port: gossip over Unix datagrams, and figures of all together.

Each gateway has a datagram socket at a path that the others know. A datagram that is lost, or a
peer that is not there, costs nothing (core/router/gossip.py). Nothing is acknowledged, connected
or retried, and the controller has no part in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from headrace import messages
from headrace.core.router.events import PeersHeard
from headrace.core.router.gossip import REPEAT_PERIOD, Gossip, Load, PoolNews, PoolShare, Saying
from headrace.core.router.lanes import LaneKey
from headrace.errors import NotReady
from headrace.server.gateway.http.messages import error_response
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.clock import Clock
    from headrace.core.router.events import RouterEvent
    from headrace.core.router.machine import Router
    from headrace.server.gateway.http.messages import Response
    from headrace.types import Seconds

MAX_DATAGRAM_BYTES = 1 << 20

_LOG = logging.getLogger(__name__)


class Peers(Protocol):
    """The other gateways, as parts of this one see them."""

    def held(self, name: str) -> int:
        """Return how many of a scarce thing the others hold."""
        ...

    def count(self, held: Callable[[], Mapping[str, int]]) -> None:
        """Tell the others what ``held`` returns, by name, from now on."""
        ...

    def join(self, pool: str, router: Router, feed: Callable[[RouterEvent], None]) -> None:
        """Tell the others of a Router's load, and the Router of theirs."""
        ...

    def answer_metrics(
        self, own: Callable[[], Response], reply: Callable[[Response], None]
    ) -> None:
        """Reply with the figures of all gateways."""
        ...


class Alone:
    """Implements Peers: there is no other gateway."""

    def held(self, name: str) -> int:
        """See Peers."""
        return 0

    def count(self, held: Callable[[], Mapping[str, int]]) -> None:
        """See Peers."""

    def join(self, pool: str, router: Router, feed: Callable[[RouterEvent], None]) -> None:
        """See Peers."""

    def answer_metrics(
        self, own: Callable[[], Response], reply: Callable[[Response], None]
    ) -> None:
        """See Peers."""
        reply(own())


ALONE = Alone()


class AsksAll(Protocol):
    """Who can ask all gateways. ``ControlDoor`` is one."""

    def ask_all(self, path: str, reply: Callable[[Response], None]) -> bool:
        """Have ``reply`` called with the answer; return False if nobody is there to ask."""
        ...


class _State(NamedTuple):
    """What is said, but for the number."""

    pools: dict[str, PoolShare]
    held: dict[str, int]


class GossipingPeers:
    """Implements Peers. With a ``period`` of 0 nothing is told or heard."""

    def __init__(self, life: str, wire: GossipSocket, *, period: Seconds, clock: Clock) -> None:
        self.asker: AsksAll | None = None
        self.gossip = Gossip(life)
        self._wire = wire
        self._period = period
        self._clock = clock
        self._routers: dict[str, tuple[Router, Callable[[RouterEvent], None]]] = {}
        self._held: list[Callable[[], Mapping[str, int]]] = []
        self._said: tuple[_State, Seconds] | None = None  # last, and when it is repeated
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to listen and to speak."""
        if self._period:
            self._wire.open(self._hear)
            self._tick()

    def hand_over(self) -> None:
        """A successor has the own path: it is to hear what is still going on here."""
        self._wire.add_own_path()

    def close(self) -> None:
        """Say no more. Others forget this gateway after a while."""
        if self._timer is not None:
            self._timer.cancel()
        self._wire.close()

    # Peers

    def held(self, name: str) -> int:
        """See Peers."""
        return self.gossip.held(name)

    def count(self, held: Callable[[], Mapping[str, int]]) -> None:
        """See Peers."""
        self._held.append(held)

    def join(self, pool: str, router: Router, feed: Callable[[RouterEvent], None]) -> None:
        """See Peers."""
        self._routers[pool] = (router, feed)
        loads = self.gossip.loads(pool)
        if loads:
            feed(PeersHeard(dict(loads), {}))

    def answer_metrics(
        self, own: Callable[[], Response], reply: Callable[[Response], None]
    ) -> None:
        """See Peers. Never those of one gateway alone: a scraper would see counters go back."""
        if self.asker is None or not self.asker.ask_all("/metrics", reply):
            reply(error_response(NotReady("nobody is here to gather the figures of all gateways")))

    # The wire

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._tick)
        now = self._clock.now()
        self._tell(self.gossip.expire(now))
        state = self._state()
        if self._said is None or state != self._said[0] or now >= self._said[1]:
            self._said = (state, now + REPEAT_PERIOD)
            self._number += 1
            self._wire.send(
                encoded(
                    Saying(
                        life=self.gossip.life,
                        number=self._number,
                        pools=state.pools,
                        held=state.held,
                    )
                )
            )

    def _state(self) -> _State:
        held: dict[str, int] = {}
        for each in self._held:
            held.update(each())
        pools = {pool: router.share() for pool, (router, _) in self._routers.items()}
        return _State(pools, held)

    def _hear(self, datagram: bytes) -> None:
        try:
            saying = decoded(datagram)
        except (msgspec.MsgspecError, ValueError) as error:
            _LOG.warning("a datagram that is no gossip: %s", error)
            return
        self._tell(self.gossip.hear(saying, self._clock.now()))

    def _tell(self, news: Mapping[str, PoolNews]) -> None:
        for pool, each in news.items():
            if pool in self._routers:
                self._routers[pool][1](PeersHeard(each.loads, each.service))


class GossipSocket:
    """Datagrams between ``paths``, of which the one at ``place`` is our own."""

    def __init__(self, paths: Sequence[str], *, place: int) -> None:
        self._path = Path(paths[place])
        self._targets = [path for index, path in enumerate(paths) if index != place]
        self._socket: socket.socket | None = None

    def open(self, receive: Callable[[bytes], None]) -> None:
        """Listen at the own path, which is taken from whoever had it. To be called on the loop."""
        self._socket = listening = _bind_datagrams(self._path)

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                while listening.fileno() >= 0:
                    receive(listening.recv(MAX_DATAGRAM_BYTES))

        asyncio.get_running_loop().add_reader(listening.fileno(), read)

    def add_own_path(self) -> None:
        """Send to the own path too, from now on."""
        self._targets.append(str(self._path))

    def send(self, datagram: bytes) -> None:
        """Send it to all others that are there and not too busy to read."""
        if self._socket is None:
            return
        for target in self._targets:
            try:
                self._socket.sendto(datagram, target)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    _LOG.warning("gossip of %d bytes is too long to be sent", len(datagram))

    def close(self) -> None:
        """Hear and say no more."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None


def encoded(saying: Saying) -> bytes:
    """Return the datagram of a saying."""
    pools = {
        pool: messages.GossipPool(
            tuple(messages.GossipLoad(replica, *load) for replica, load in share.loads.items()),
            tuple((*key, amount) for key, amount in share.service.items()),
        )
        for pool, share in saying.pools.items()
    }
    message = messages.Gossip(saying.life, saying.number, pools, dict(saying.held))
    return bytes((messages.VERSION,)) + messages.encode(message)


def decoded(datagram: bytes) -> Saying:
    """Return the saying of a datagram. Raises ValueError or msgspec.MsgspecError."""
    if datagram[:1] != bytes((messages.VERSION,)):
        raise ValueError(f"it begins with {datagram[:1]!r}, not with version {messages.VERSION}")
    message = messages.decode_gossip(datagram[1:])
    pools = {
        pool: PoolShare(
            {
                ReplicaId(load.replica): Load(
                    load.outstanding, load.prefill_tokens, load.decoding, load.context_tokens
                )
                for load in share.loads
            },
            {LaneKey(rank, tenant): amount for rank, tenant, amount in share.service},
        )
        for pool, share in message.pools.items()
    }
    return Saying(life=message.life, number=message.number, pools=pools, held=message.held)


def _bind_datagrams(path: Path) -> socket.socket:
    receiving = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiving.setblocking(False)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    previous = os.umask(0o177)
    try:
        receiving.bind(str(path))
    finally:
        os.umask(previous)
    return receiving
