"""What a gateway process does beside serving: its part in gossip, and leaving to a successor."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from headrace.clock import MonotonicClock
from headrace.server.gateway.peers import ALONE, GossipingPeers, GossipSocket
from headrace.server.gateway_set import HAND_OVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.server.gateway.peers import AsksAll, Peers
    from headrace.server.settings import GatewayProcess

_LIFE_BYTES = 4


class Leaves(Protocol):
    """Who has client connections. ``Listener`` is one."""

    def hand_over(self) -> None:
        """Leave new connections to a successor, serve the open ones a little longer."""
        ...


class Together:
    """This process among the gateways of its server. ``life`` names it and no other process."""

    def __init__(self, process: GatewayProcess) -> None:
        self.life = f"{process.name}.{secrets.token_hex(_LIFE_BYTES)}"
        self._seconds = process.handover_seconds
        self._gossip: GossipingPeers | None = None
        if process.gossip:
            self._gossip = GossipingPeers(
                self.life,
                GossipSocket(process.gossip, place=process.place),
                period=process.gateway.gossip_ms / 1000,
                clock=MonotonicClock(),
            )

    @property
    def peers(self) -> Peers:
        """The other gateways."""
        return ALONE if self._gossip is None else self._gossip

    @contextmanager
    def serving(
        self, listener: Leaves, stop: asyncio.Event, asker: AsksAll | None
    ) -> Iterator[None]:
        """Take part in gossip, and when a successor is there leave to it, then set ``stop``."""
        loop = asyncio.get_running_loop()

        def hand_over() -> None:
            listener.hand_over()
            if self._gossip is not None:
                self._gossip.hand_over()
            loop.call_later(self._seconds, stop.set)

        loop.add_signal_handler(HAND_OVER, hand_over)
        if self._gossip is not None:
            self._gossip.asker = asker
            self._gossip.start()
        try:
            yield
        finally:
            if self._gossip is not None:
                self._gossip.close()
            loop.remove_signal_handler(HAND_OVER)
