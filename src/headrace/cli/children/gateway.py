"""``headrace child-gateway``: the HTTP side, started by the supervisor."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import __version__
from headrace.cli.children.foreign import serve_foreign
from headrace.clock import MonotonicClock, wall_time
from headrace.messages import Member
from headrace.model.text import load_text_model
from headrace.monitoring.journal import Journal, JournalFile
from headrace.monitoring.logging import configure_logging
from headrace.monitoring.metrics import Registry
from headrace.monitoring.table import BUILD, GATEWAY_TABLE
from headrace.server.child import Ready, run_child
from headrace.server.gateway.app import Outside, build_gateway
from headrace.server.gateway.control import ControlDoor
from headrace.server.gateway.descriptors import fitted, raise_limit
from headrace.server.gateway.handover import Together
from headrace.server.gateway.pool import pool_report
from headrace.server.keys import open_keys
from headrace.server.process_tuning import pooled_bits, settle_memory
from headrace.server.settings import GatewayProcess
from headrace.server.transport.link import EngineLink

if TYPE_CHECKING:
    import argparse

    from headrace.server.child import Parent
    from headrace.server.gateway.app import Gateway
    from headrace.server.gateway.members import Membership
    from headrace.server.gateway.peers import Peers
    from headrace.server.keys import Keys
    from headrace.types import ReplicaId

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments: the settings come from the supervisor."""
    parser.description = "The HTTP side. Started by `headrace serve`, not by hand."


def main(args: argparse.Namespace) -> int:
    """Run the process."""
    return run_child(GatewayProcess, _serve_either)


async def _serve_either(process: GatewayProcess, parent: Parent, stop: asyncio.Event) -> int:
    serve = serve_foreign if process.replicas else _serve
    return await serve(process, parent, stop)


async def _serve(process: GatewayProcess, parent: Parent, stop: asyncio.Event) -> int:
    configure_logging(process=process.name, format=process.log.format, level=process.log.level)
    journal = _journal(process)
    keys = open_keys(
        process.api_keys,
        Path(process.key_file) if process.key_file else None,
        trust_tenant_header=process.gateway.trust_tenant_header,
    )
    together = Together(process)
    gateway = _build(process, journal, keys, together.peers)
    members = _members(process, gateway)
    members.update(Member(replica=name, address=path) for name, path in process.engines.items())
    control = await _open_control(process, gateway, members, together.life)
    listening = socket.socket(fileno=process.listening_fd)
    serving = asyncio.create_task(gateway.serve(listening))
    stopping = asyncio.create_task(_drain(gateway, process.drain_seconds, stop))
    following = asyncio.create_task(keys.follow())
    settle_memory()
    try:
        with together.serving(gateway.listener, stop, control):
            parent.report(Ready(model=process.served_name))
            await serving
    except Exception:  # the outermost boundary of this process
        _log.critical("the gateway died", exc_info=True)
        return 1
    finally:
        for task in (stopping, following):
            task.cancel()
        await asyncio.wait([stopping, following])
        if control is not None:
            control.close()
        await members.close()
        journal.close()
    return 0


def _journal(process: GatewayProcess) -> Journal:
    file = JournalFile(Path(process.journal)) if process.journal else None
    return Journal(unix_time=wall_time, source="router", file=file)


def _build(process: GatewayProcess, journal: Journal, keys: Keys, peers: Peers) -> Gateway:
    registry = Registry(GATEWAY_TABLE)
    registry.put(BUILD, __version__, process.served_name, value=1)
    return build_gateway(
        fitted(process.gateway, raise_limit()),
        text=load_text_model(Path(process.model.path)),
        names=(process.served_name,),
        keys=keys,
        outside=Outside(
            MonotonicClock(),
            pooled_bits(),
            registry,
            name=process.name,
            journal=journal,
            cache_secret=bytes.fromhex(process.cache_secret) or keys.cache_secret or b"",
            peers=peers,
        ),
    )


def _members(process: GatewayProcess, gateway: Gateway) -> Membership:
    def make_link(replica: ReplicaId, address: str) -> EngineLink:
        return EngineLink(
            replica=replica,
            gateway=process.name,
            path=Path(address),
            events=gateway.traffic,
            clock=MonotonicClock(),
            limits=process.transport,
        )

    return gateway.membership(make_link)


async def _open_control(
    process: GatewayProcess, gateway: Gateway, members: Membership, life: str
) -> ControlDoor | None:
    """Let the controller in, if there is to be one."""
    if not process.control:
        return None
    router, clock = gateway.questions.pool.router, MonotonicClock()
    door = ControlDoor(
        gateway=process.name,
        life=life,
        update=members.update,
        report=lambda: pool_report(router.figures(clock.now()), process.name),
        answer=gateway.questions.answer,
        limits=process.transport,
    )
    gateway.traffic.on_emptied = door.emptied
    await door.start(Path(process.control))
    return door


async def _drain(gateway: Gateway, seconds: float, stop: asyncio.Event) -> None:
    await stop.wait()
    await gateway.drain(seconds)
