"""``headrace child-console``: the web console's process, started by the supervisor."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from headrace.monitoring.logging import configure_logging
from headrace.server.child import Ready, run_child
from headrace.server.console.app import build_console
from headrace.server.settings import ConsoleProcess

if TYPE_CHECKING:
    import argparse
    import asyncio

    from headrace.server.child import Parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments: the settings come from the supervisor."""
    parser.description = "The web console. Started by `headrace serve`, not by hand."


def main(args: argparse.Namespace) -> int:
    """Run the process."""
    return run_child(ConsoleProcess, _serve)


async def _serve(process: ConsoleProcess, parent: Parent, stop: asyncio.Event) -> int:
    configure_logging(process="console", format=process.log.format, level=process.log.level)
    listening = socket.socket(fileno=process.listening_fd)
    console = build_console(
        token=process.token,
        port=listening.getsockname()[1],
        admin=process.admin,
        server_url=process.server_url,
    )
    parent.report(Ready(model=""))
    await console.serve(listening, stop)
    return 0
