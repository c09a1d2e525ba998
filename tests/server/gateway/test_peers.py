"""Gateways that tell each other over real sockets, and their caps as one."""

from __future__ import annotations

import asyncio
import socket
import stat
from typing import TYPE_CHECKING, cast

import pytest

from headrace.clock import MonotonicClock
from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.router.events import ReplicaReady, RequestArrived, RouterEvent
from headrace.core.router.gossip import Load, PoolShare, Saying
from headrace.core.router.lanes import LaneKey
from headrace.core.router.machine import Router
from headrace.errors import Overloaded
from headrace.server.gateway.http.crowd import Crowd
from headrace.server.gateway.http.limits import HttpLimits
from headrace.server.gateway.http.messages import Response
from headrace.server.gateway.peers import GossipingPeers, GossipSocket, decoded, encoded
from headrace.testing.async_test import async_test
from headrace.types import ReplicaId, Request, RequestId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from headrace.server.gateway.http.connection import Connection

R0 = ReplicaId("r0")


def test_a_datagram_carries_all_of_a_saying():
    saying = Saying(
        life="g0.1a",
        number=7,
        pools={
            "m": PoolShare({R0: Load(1, 2, 3, 4)}, {LaneKey(1, "a"): 2.5}),
            "": PoolShare({}, {}),
        },
        held={"key/k": 3},
    )
    assert decoded(encoded(saying)) == saying
    with pytest.raises(ValueError, match="not with version"):
        decoded(b"\x00" + encoded(saying)[1:])


class Gateway:
    """A Router and its part in gossip."""

    def __init__(self, place: int, paths: list[str], name: str = "") -> None:
        self.clock = MonotonicClock()
        self.router = Router()
        self.feed(ReplicaReady(R0, ReplicaFacts()))
        self.peers = GossipingPeers(
            name or f"g{place}", GossipSocket(paths, place=place), period=0.002, clock=self.clock
        )
        self.held: dict[str, int] = {}
        self.peers.count(lambda: self.held)
        self.peers.join("", self.router, self.feed)

    def feed(self, event: RouterEvent) -> None:
        self.router.handle(event, self.clock.now())

    def arrive(self, name: str) -> None:
        self.feed(RequestArrived((Request(id=RequestId(name), prompt=(1, 2), max_tokens=4),)))

    @property
    def load(self) -> int:
        return self.router.replicas[0].outstanding


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (another process would be no different)
            await asyncio.sleep(0.001)


@async_test
async def test_load_and_seats_are_heard_and_forgotten_with_their_gateway(tmp_path: Path):
    paths = [str(tmp_path / f"g{place}.gossip") for place in range(3)]
    first, second = Gateway(0, paths), Gateway(1, paths)  # nobody at the third
    first.peers.start()
    second.peers.start()
    try:
        assert stat.S_IMODE((tmp_path / "g0.gossip").stat().st_mode) == 0o600
        first.arrive("a")
        first.arrive("b")
        first.held["key/k"] = 2
        await until(lambda: (second.load, second.peers.held("key/k")) == (2, 2))
        second.arrive("c")
        await until(lambda: first.load == 3)
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with stranger:
            stranger.sendto(b"\x03nonsense", paths[1])
        successor = Gateway(0, paths, "g0-2")
        first.peers.hand_over()
        successor.peers.start()
        await until(lambda: successor.load == 3)  # what still runs at the old one, and the other's
        successor.peers.close()
        first.peers.close()
        await until(lambda: second.load == 1)  # forgotten after a second
        assert second.peers.held("key/k") == 0
    finally:
        first.peers.close()
        second.peers.close()


def test_a_period_of_nothing_is_no_gossip(tmp_path: Path):
    paths = [str(tmp_path / f"g{place}.gossip") for place in range(2)]
    peers = GossipingPeers("g0", GossipSocket(paths, place=0), period=0.0, clock=MonotonicClock())
    peers.start()
    peers.close()
    assert list(tmp_path.iterdir()) == []


def test_figures_of_one_gateway_alone_are_never_told_for_all(tmp_path: Path):
    peers = GossipingPeers(
        "g0", GossipSocket([str(tmp_path / "g")], place=0), period=0.0, clock=MonotonicClock()
    )
    replies: list[Response] = []
    peers.answer_metrics(lambda: Response(200, b"mine"), replies.append)
    assert [(reply.status, b"mine" in reply.body) for reply in replies] == [(503, False)]


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("elsewhere", "words"),
    [
        ({"connections": 3}, "over 4 connections"),
        ({"ip/203.0.113.9": 1}, "over 2 connections from one address"),
        ({"ip/203.0.113.8": 5, "connections": 1}, None),
    ],
)
def test_connections_at_other_gateways_count_against_the_caps(
    elsewhere: Mapping[str, int], words: str | None
):
    limits = HttpLimits(max_connections=4, max_connections_per_ip=2)
    crowd = Crowd(limits, lambda name: elsewhere.get(name, 0))
    assert crowd.add(cast("Connection", object()), "203.0.113.9") is None
    local = crowd.add(cast("Connection", object()), "127.0.0.1")
    refusal = crowd.add(last := cast("Connection", object()), "203.0.113.9")
    if words is None:
        assert local is None
        assert refusal is None
    else:
        assert words in str(refusal or local)
        assert isinstance(refusal, Overloaded)
    crowd.remove(last)
    assert crowd.held() == {"ip/203.0.113.9": 1, "connections": 2}
