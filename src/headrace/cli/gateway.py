"""``headrace gateway``: the HTTP side, started by the supervisor."""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import __version__
from headrace.clock import MonotonicClock
from headrace.model.text import load_text_model
from headrace.monitoring.logging import configure_logging
from headrace.monitoring.metrics import Registry
from headrace.monitoring.table import BUILD, GATEWAY_TABLE
from headrace.server.child import Ready, run_child
from headrace.server.gateway.app import Outside, build_gateway
from headrace.server.settings import GatewayProcess
from headrace.server.transport.link import EngineLink
from headrace.types import ReplicaId

if TYPE_CHECKING:
    import argparse

    from headrace.server.child import Parent
    from headrace.server.gateway.app import Gateway

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments: the settings come from the supervisor."""
    parser.description = "The HTTP side. Started by `headrace serve`, not by hand."


def main(args: argparse.Namespace) -> int:
    """Run the process."""
    return run_child(GatewayProcess, _serve)


async def _serve(process: GatewayProcess, parent: Parent, stop: asyncio.Event) -> int:
    configure_logging(process=process.name, format=process.log.format, level=process.log.level)
    gateway = _build(process)
    links = [asyncio.create_task(link.run()) for link in _links(process, gateway)]
    listening = socket.socket(fileno=process.listening_fd)
    serving = asyncio.create_task(gateway.serve(listening))
    stopping = asyncio.create_task(_drain(gateway, process.drain_seconds, stop))
    gc.collect()
    gc.freeze()  # what is here now stays: collections need not look at it again
    parent.report(Ready(model=process.served_name))
    try:
        await serving
    except Exception:  # the outermost boundary of this process
        _log.critical("the gateway died", exc_info=True)
        return 1
    finally:
        for task in (stopping, *links):
            task.cancel()
        await asyncio.wait([stopping, *links])
    return 0


def _build(process: GatewayProcess) -> Gateway:
    registry = Registry(GATEWAY_TABLE)
    registry.put(BUILD, __version__, process.served_name, value=1)
    return build_gateway(
        process.gateway,
        text=load_text_model(Path(process.model.path)),
        names=(process.served_name,),
        api_keys=process.api_keys,
        outside=Outside(MonotonicClock(), secrets.randbits, registry),
    )


def _links(process: GatewayProcess, gateway: Gateway) -> list[EngineLink]:
    return [
        EngineLink(
            replica=ReplicaId(replica),
            gateway=process.name,
            path=Path(path),
            events=gateway.traffic,
            clock=MonotonicClock(),
            limits=process.transport,
        )
        for replica, path in process.engines.items()
    ]


async def _drain(gateway: Gateway, seconds: float, stop: asyncio.Event) -> None:
    await stop.wait()
    await gateway.drain(seconds)
