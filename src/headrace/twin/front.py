"""SimulatedFront: all gateways of a cluster, what they tell each other, and who gets a request.

What the operating system (SO_REUSEPORT), server/gateway/gossip.py and the controller do for several
gateway processes, done in virtual time. A connection is as likely at one gateway as at another.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from headrace.core.autoscaler.gathering import Gathering, summed
from headrace.core.router.events import DrainReplica, PeersHeard, ResumeReplica
from headrace.core.router.gossip import Saying
from headrace.machine import Source
from headrace.twin.network import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.core.autoscaler.events import PoolLoad
    from headrace.core.router.events import RouterEvent
    from headrace.core.router.gossip import Gossip, PoolNews
    from headrace.twin.gateway import SimulatedGateway
    from headrace.twin.lines import Lines
    from headrace.twin.network import Delay, Random
    from headrace.twin.simulator import Simulator
    from headrace.types import ReplicaId, Seconds

POOL = ""
"""The only one: a cluster serves one model."""


class Neighbour:
    """A gateway among others: what it hears and says."""

    def __init__(self, gateway: SimulatedGateway, gossip: Gossip) -> None:
        self.gossip = gossip
        self._gateway = gateway
        self._number = 0

    def hear(self, saying: Saying) -> None:
        """Take what another one says."""
        self._tell(self.gossip.hear(saying, self._gateway.driver.now))

    def say(self, links: Sequence[Link[Saying]], goes_on: Callable[[], bool]) -> bool:
        """Tell the others; return whether to go on."""
        self._tell(self.gossip.expire(self._gateway.driver.now))
        self._number += 1
        saying = Saying(
            life=self.gossip.life,
            number=self._number,
            pools={POOL: self._gateway.router.share()},
            held=dict(self._gateway.quota.seats.taken),
        )
        for link in links:
            link.send(saying)
        return goes_on()

    def _tell(self, news: Mapping[str, PoolNews]) -> None:
        if POOL in news:
            self._gateway.driver.deliver(PeersHeard(news[POOL].loads, news[POOL].service))


class SimulatedFront:
    """``on_emptied`` hears of drains that are done at every gateway."""

    def __init__(
        self,
        gateways: Sequence[SimulatedGateway],
        gossips: Sequence[Gossip],
        *,
        random: Random,
        on_emptied: Callable[[ReplicaId], None],
    ) -> None:
        self.gateways = tuple(gateways)
        self.neighbours = tuple(
            Neighbour(gateway, gossip) for gateway, gossip in zip(gateways, gossips, strict=True)
        )
        self._random = random
        self._gathering = Gathering()
        self._on_emptied = on_emptied
        for gateway in gateways:
            gateway.on_emptied = self._emptied
            self._gathering.join(gateway.name)

    @property
    def dispatched(self) -> Counter[ReplicaId]:
        """Attempts sent to each replica."""
        return sum((gateway.tally.dispatched for gateway in self.gateways), Counter())

    @property
    def migrations(self) -> int:
        """Streams that went on elsewhere after tokens were delivered."""
        return sum(gateway.tally.migrations for gateway in self.gateways)

    @property
    def retries(self) -> int:
        """The same before their first token."""
        return sum(gateway.tally.retries for gateway in self.gateways)

    @property
    def hedges(self) -> int:
        """Requests that were moved because they waited in vain."""
        return sum(gateway.tally.hedges for gateway in self.gateways)

    def choose(self) -> SimulatedGateway:
        """Return where the next connection goes."""
        if len(self.gateways) == 1:
            return self.gateways[0]
        return self.gateways[int(self._random.random() * len(self.gateways))]

    def connect(self, replica: ReplicaId, lines: Lines, ready: RouterEvent) -> None:
        """A replica takes requests from now on."""
        for gateway, connection in zip(self.gateways, lines.connections, strict=True):
            gateway.connect(replica, connection, ready)

    def lose(self, replica: ReplicaId, reason: str) -> None:
        """The connections to a replica were reset."""
        for gateway in self.gateways:
            gateway.lose(replica, reason)

    def drain(self, replica: ReplicaId, limit: Seconds) -> None:
        """Nothing new goes there; what is left after ``limit`` goes on elsewhere."""
        self._gathering.drains(replica, on=True)
        for gateway in self.gateways:
            gateway.driver.feed(DrainReplica(replica, limit))

    def resume(self, replica: ReplicaId) -> None:
        """The drain is off."""
        self._gathering.drains(replica, on=False)
        for gateway in self.gateways:
            gateway.driver.feed(ResumeReplica(replica))

    def load(self) -> PoolLoad:
        """Return what the controller is told, some times a second."""
        return summed([gateway.load() for gateway in self.gateways])

    def gossip(
        self, simulator: Simulator, period: Seconds, delay: Delay, *, goes_on: Callable[[], bool]
    ) -> None:
        """Have every gateway tell the others every ``period``, each at its own time."""
        for index, neighbour in enumerate(self.neighbours):
            begin = simulator.now + period * index / len(self.gateways)
            links = [
                Link(simulator, each.hear, delay=delay, random=self._random)
                for each in self.neighbours
                if each is not neighbour
            ]
            say = partial(neighbour.say, links, goes_on)
            simulator.call_at(begin, partial(simulator.call_every, period, say), Source.TIMER)

    def _emptied(self, gateway: str, replica: ReplicaId) -> None:
        if self._gathering.emptied(gateway, replica):
            self._on_emptied(replica)
