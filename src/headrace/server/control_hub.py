"""The controller's ends of all control connections: one for each gateway process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.server.control_link import ControlLink

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headrace.messages import Members
    from headrace.server.control_link import Collector, ControlEvents
    from headrace.server.transport.frames import ConnectionLimits
    from headrace.types import Seconds


LAST_WORDS_SECONDS: Seconds = 1.0
"""For what a gateway that has ended had written."""


class ControlHub:
    """Implements Links (gateway_set.py) and Gateways (controller.py)."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._links: dict[str, ControlLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._finishing: set[asyncio.Task[None]] = set()
        self._members: Members | None = None
        self._bound: tuple[ControlEvents, Collector] | None = None

    @property
    def gateways(self) -> Mapping[str, ControlLink]:
        """Those that are connected now, by name."""
        return {name: link for name, link in self._links.items() if link.is_connected}

    def bind(self, events: ControlEvents, collector: Collector) -> None:
        """Say who is told; before the first gateway."""
        self._bound = (events, collector)

    def send_members(self, members: Members) -> None:
        """See Gateways."""
        self._members = members
        for link in self._links.values():
            link.send_members(members)

    def open(self, name: str, control: Path) -> None:
        """See Links."""
        assert self._bound is not None
        events, collector = self._bound
        link = ControlLink(control, self._limits, name=name)
        link.bind(events, collector)
        if self._members is not None:
            link.send_members(self._members)
        self._links[name] = link
        self._tasks[name] = asyncio.create_task(link.run())

    def close(self, name: str) -> None:
        """See Links. What its process said last may still be on its way."""
        task = asyncio.create_task(self._finish(name))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def _finish(self, name: str) -> None:
        await self._links[name].lost(LAST_WORDS_SECONDS)
        self._tasks.pop(name).cancel()
        self._links.pop(name)
        if self._bound is not None:
            self._bound[1].gone(name)

    async def run(self) -> None:
        """Keep the connections until cancelled."""
        try:
            await asyncio.Event().wait()
        finally:
            tasks = (*self._finishing, *self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
