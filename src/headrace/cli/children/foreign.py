"""The gateway process before foreign replicas; gateway.py is the one before our own engines."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import __version__
from headrace.clock import MonotonicClock, wall_time
from headrace.monitoring.journal import Journal, JournalFile
from headrace.monitoring.logging import configure_logging
from headrace.monitoring.metrics import Registry
from headrace.monitoring.table import BUILD, GATEWAY_TABLE
from headrace.server.child import Ready
from headrace.server.gateway.app import Outside
from headrace.server.gateway.control import ControlDoor
from headrace.server.gateway.descriptors import fitted, raise_limit
from headrace.server.gateway.foreign.app import build_foreign_gateway
from headrace.server.gateway.handover import Together
from headrace.server.keys import open_keys
from headrace.server.process_tuning import pooled_bits, settle_memory

if TYPE_CHECKING:
    from headrace.messages import Member
    from headrace.server.child import Parent
    from headrace.server.gateway.foreign.app import ForeignGateway
    from headrace.server.gateway.peers import Peers
    from headrace.server.keys import Keys
    from headrace.server.settings import GatewayProcess

_log = logging.getLogger(__name__)


async def serve_foreign(process: GatewayProcess, parent: Parent, stop: asyncio.Event) -> int:
    """Run the process until it is drained; return the exit code."""
    configure_logging(process=process.name, format=process.log.format, level=process.log.level)
    file = JournalFile(Path(process.journal)) if process.journal else None
    journal = Journal(unix_time=wall_time, source="router", file=file)
    keys = open_keys(
        process.api_keys,
        Path(process.key_file) if process.key_file else None,
        trust_tenant_header=process.gateway.trust_tenant_header,
    )
    together = Together(process)
    gateway = _build(process, journal, keys, together.peers)
    door = await _open_control(process, gateway, together.life)
    serving = asyncio.create_task(gateway.serve(socket.socket(fileno=process.listening_fd)))
    beside = [
        asyncio.create_task(keys.follow()),
        asyncio.create_task(_drain(gateway, process, stop)),
    ]
    settle_memory()
    try:
        with together.serving(gateway.listener, stop, door):
            parent.report(Ready(model=""))
            await serving
    except Exception:  # the outermost boundary of this process
        _log.critical("the gateway died", exc_info=True)
        return 1
    finally:
        for task in beside:
            task.cancel()
        await asyncio.wait(beside)
        if door is not None:
            door.close()
        journal.close()
    return 0


def _build(process: GatewayProcess, journal: Journal, keys: Keys, peers: Peers) -> ForeignGateway:
    registry = Registry(GATEWAY_TABLE)
    registry.put(BUILD, __version__, "", value=1)
    return build_foreign_gateway(
        fitted(process.gateway, raise_limit(), for_each=2),
        process.foreign,
        process.replicas,
        keys=keys,
        outside=Outside(
            MonotonicClock(),
            pooled_bits(),
            registry,
            name=process.name,
            journal=journal,
            cache_secret=keys.cache_secret or bytes.fromhex(process.cache_secret),
            peers=peers,
        ),
    )


async def _open_control(
    process: GatewayProcess, gateway: ForeignGateway, life: str
) -> ControlDoor | None:
    """Let the controller in, if there is to be one. It has no members to tell of."""
    if not process.control:
        return None
    pool, clock = gateway.questions.pool, MonotonicClock()

    def ignore(_members: tuple[Member, ...]) -> None:
        pass

    door = ControlDoor(
        gateway=process.name,
        life=life,
        update=ignore,
        report=lambda: pool.report(process.name, clock.now()),
        answer=gateway.questions.answer,
        limits=process.transport,
    )
    await door.start(Path(process.control))
    return door


async def _drain(gateway: ForeignGateway, process: GatewayProcess, stop: asyncio.Event) -> None:
    await stop.wait()
    await gateway.drain(process.drain_seconds)
