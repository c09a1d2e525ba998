"""The shared poll, without sockets."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NoReturn

from headrace.server.console.feed import StateFeed
from headrace.server.console.upstream import Upstream
from headrace.server.gateway.http.exchange import Exchange
from headrace.server.gateway.http.messages import ResponseContext
from headrace.testing.async_test import async_test


class Tab:
    """Implements Wire."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Absent:
    """A server that is not there, and counts who looked."""

    def __init__(self) -> None:
        self.num_looks = 0

    async def connect(self) -> NoReturn:
        self.num_looks += 1
        raise ConnectionRefusedError(111, "refused")


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@async_test
async def test_nothing_is_asked_without_a_tab_and_nothing_after_the_last_left():
    absent = Absent()
    upstream = Upstream("the server", "localhost", absent.connect)
    feed = StateFeed(upstream, period=0, wall_time=lambda: 1.5)
    running = asyncio.create_task(feed.run())
    await turns(20)
    assert absent.num_looks == 0
    wire = Tab()
    exchange = Exchange(wire, ResponseContext(), ping_period=15)
    feed.open(exchange)
    while len(wire.sent) < 3:
        await turns(1)
    assert b'{"unix":1.5,"lost":"no connection to the server: refused"}' in wire.sent[1]
    exchange.lost()
    assert feed.num_tabs == 0
    await turns(20)  # the poll under way may end
    looks = absent.num_looks
    await turns(100)
    assert absent.num_looks == looks
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
