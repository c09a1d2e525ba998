"""Restarter: every gateway, or every replica, one after the other, while the server serves.

A gateway is replaced by a successor on its socket (gateway_set.py). A replica is drained as by
``headrace drain``: since it counts no more, the Autoscaler starts another first, and streams move
on before it ends. Nothing here decides where requests go.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest, StartError
from headrace.monitoring.shapes import GatewayRow

if TYPE_CHECKING:
    from headrace.clock import Clock
    from headrace.server.admin.gateways import Connected
    from headrace.server.controller import Controller
    from headrace.server.gateway_set import GatewaySet
    from headrace.types import ReplicaId, Seconds

_LOOK_SECONDS: Seconds = 0.05

_log = logging.getLogger(__name__)


class Restarter:
    """Implements Restarts. One order at a time; ``patience`` bounds one replica's part of it."""

    def __init__(
        self,
        gateways: GatewaySet,
        controller: Controller,
        connected: Connected,
        *,
        patience: Seconds,
        clock: Clock,
    ) -> None:
        self.progress = ""
        self._gateways = gateways
        self._controller = controller
        self._connected = connected
        self._patience = patience
        self._clock = clock
        self._order = ""
        self._ordered = asyncio.Event()

    def begin(self, what: str) -> str:
        """See Restarts."""
        if self._order:
            raise InvalidRequest(f"the {self._order} are being restarted: {self.progress}")
        if what == "replicas" and not self._controller.autoscaler.ceiling:
            raise InvalidRequest("these replicas are run elsewhere: restart them there")
        self._order, self.progress = what, "begins"
        self._ordered.set()
        number = len(self._gateways.names) if what == "gateways" else len(self._replicas())
        return f"restarts {number} {what}, one after the other; `headrace ps` says how far it is"

    def gateways(self) -> list[GatewayRow]:
        """See Restarts."""
        connected = self._connected.gateways
        return [
            GatewayRow(
                gateway=name,
                pid=keeper.child.pid or 0,
                connected=name in connected,
                restarts=keeper.num_deaths,
            )
            for name, keeper in self._gateways.processes()
        ]

    async def run(self) -> None:
        """Carry out orders until cancelled."""
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            try:
                await (
                    self._restart_gateways()
                    if self._order == "gateways"
                    else self._restart_replicas()
                )
                self._note("restarted", self._order, "every one was replaced")
            except StartError as error:
                self._note("restart_failed", self._order, str(error))
                _log.error("the restart of %s was given up: %s", self._order, error)
            except Exception:  # the boundary round one order: the server goes on
                self._note("restart_failed", self._order, "internal error; see the log")
                _log.exception("the restart of %s failed", self._order)
            finally:
                self._order = self.progress = ""

    async def _restart_gateways(self) -> None:
        names = self._gateways.names
        for place, name in enumerate(names):
            self.progress = f"gateway {name}, {place + 1} of {len(names)}"
            self._note("restart", name, "an operator restarts the gateways")
            await self._gateways.replace(place)

    async def _restart_replicas(self) -> None:
        """The floor is what is there now, for as long as this takes: no replica is missed."""
        controller = self._controller
        floor, ceiling = controller.autoscaler.floor, controller.autoscaler.ceiling
        replicas = self._replicas()
        raised = (max(floor, min(len(replicas), ceiling)), ceiling)
        controller.set_range(*raised)
        try:
            for number, replica in enumerate(replicas):
                self.progress = f"replica {replica}, {number + 1} of {len(replicas)}"
                controller.drain(replica, cancel=False)
                await self._until_gone(replica)
        finally:
            if (controller.autoscaler.floor, controller.autoscaler.ceiling) == raised:
                controller.set_range(floor, ceiling)

    async def _until_gone(self, replica: ReplicaId) -> None:
        deadline = self._clock.now() + self._patience
        while replica in self._controller.autoscaler.stages():
            if self._clock.now() > deadline:
                raise StartError(f"{replica} has not ended within {self._patience:g} s")
            await asyncio.sleep(_LOOK_SECONDS)

    def _replicas(self) -> list[ReplicaId]:
        return list(self._controller.autoscaler.stages())

    def _note(self, kind: str, subject: str, reason: str) -> None:
        self._controller.decisions.take(kind, subject, reason)
