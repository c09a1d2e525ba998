"""A link whose connection is cut, spoilt and slowed anywhere: it says so, and comes back."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from test_link import DESCRIPTION, Engine, Events, request, running_link, token

from headrace.clock import MonotonicClock
from headrace.core.scheduler.events import Submit
from headrace.testing.async_test import async_test
from headrace.testing.chaos import NO_FAULTS, FaultProxy, Faults, Towards
from headrace.testing.chaos.endpoint import taken_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from headrace.server.transport.link import EngineLink

READY = ("ready", DESCRIPTION)


@asynccontextmanager
async def through_proxy(
    path: Path, faults: Faults = NO_FAULTS, *, seed: int = 0
) -> AsyncIterator[tuple[Engine, EngineLink, Events, FaultProxy]]:
    engine = Engine()
    await engine.listener.start(path)
    with taken_over(path) as (ours, theirs):
        proxy = FaultProxy(upstream=theirs, clock=MonotonicClock(), faults=faults, seed=seed)
        await proxy.start(ours)
        async with running_link(path) as (link, events):
            yield engine, link, events, proxy
        await proxy.close()
    engine.listener.close("test is over")


async def works(engine: Engine, link: EngineLink, events: Events) -> None:
    """A request goes, and its token comes back."""
    link.submit(request("new"))
    while await engine.next() != Submit(request("new")):
        pass
    engine.listener.send_outputs([token("new", 7)])
    while await events.next() != ("outputs", token("new", 7)):
        pass


async def until_back(link: EngineLink, proxy: FaultProxy, events: Events) -> None:
    """Reset what is open; wait for the connection after it, and forget what was said."""
    before = link._current
    proxy.reset_all()
    while link._current in (None, before):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)
    while not events.queue.empty():
        events.queue.get_nowait()


@pytest.mark.parametrize("towards", [Towards.CLIENT, Towards.UPSTREAM])
@async_test
async def test_a_connection_may_be_cut_after_any_byte_of_the_greeting(
    tmp_path: Path, towards: Towards
) -> None:
    async with through_proxy(tmp_path / "e.sock") as (engine, link, events, proxy):
        assert await events.next() == READY
        for count in (0, 1, 4, 7):
            cut = asyncio.Event()
            proxy.tell = lambda _, cut=cut: cut.set()
            proxy.faults = Faults(reset_after=count, towards=towards)
            proxy.reset_all()
            await cut.wait()
            proxy.faults = NO_FAULTS
            await until_back(link, proxy, events)
        await works(engine, link, events)


@pytest.mark.parametrize("seed", range(4))
@async_test
async def test_spoilt_bytes_end_the_connection_and_nothing_else(tmp_path: Path, seed: int) -> None:
    """Between processes of one machine nothing is checksummed; what cannot be read is refused."""
    async with through_proxy(tmp_path / "e.sock", seed=seed) as (engine, link, events, proxy):
        assert await events.next() == READY
        proxy.faults = Faults(corrupt=0.05, towards=Towards.BOTH)
        for index in range(20):
            link.submit(request(f"x{index}"))
        engine.listener.send_outputs([token("x0", 7)])
        await asyncio.sleep(0.02)  # for some of it to arrive
        proxy.faults = NO_FAULTS
        await until_back(link, proxy, events)
        await works(engine, link, events)


@async_test
async def test_frames_may_come_by_the_byte(tmp_path: Path) -> None:
    faults = Faults(drip=20_000, towards=Towards.BOTH)
    async with through_proxy(tmp_path / "e.sock", faults) as (engine, link, events, _):
        assert await events.next() == READY
        await works(engine, link, events)


@async_test
async def test_what_was_swallowed_for_a_while_comes_late_and_in_order(tmp_path: Path) -> None:
    async with through_proxy(tmp_path / "e.sock") as (engine, link, events, proxy):
        assert await events.next() == READY
        link.submit(request("a"))
        await engine.next()
        proxy.faults = Faults(hang_after=0)
        for value in range(5):
            engine.listener.send_outputs([token("a", value)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(events.queue.get(), 0.05)
        proxy.faults = NO_FAULTS
        assert [await events.next() for _ in range(5)] == [
            ("outputs", token("a", value)) for value in range(5)
        ]
