"""``headrace restart``: every gateway or every replica anew, without a failed request."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from headrace.cli.admin import add_admin_flags, admin_client
from headrace.monitoring.shapes import Done, RestartOrder, ServerState

if TYPE_CHECKING:
    import argparse

    from headrace.types import Seconds

_LOOK_SECONDS: Seconds = 0.2

_EPILOG = """examples:
  headrace restart gateways            # successors take over their sockets, one after the other
  headrace restart replicas --no-wait  # each is replaced, its streams end or move on"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace restart``."""
    parser.description = (
        "Start every gateway or every replica of a server anew, one after the other.\n"
        "Requests go on: a successor is ready before its predecessor leaves."
    )
    parser.epilog = _EPILOG
    parser.add_argument("what", choices=("gateways", "replicas"), help="what to start anew")
    parser.add_argument("--no-wait", action="store_true", help="return at once")
    add_admin_flags(parser)


def main(args: argparse.Namespace) -> int:
    """Order it; say how far it is until it is done."""
    client = admin_client(args)
    print(client.post("/restart", RestartOrder(what=args.what), Done).message, flush=True)
    pause, shown = threading.Event(), ""
    while not args.no_wait:
        state = client.get("/state", ServerState)
        if not state.restarting:
            break
        if state.restarting != shown:
            shown = state.restarting
            print(shown, file=sys.stderr, flush=True)
        pause.wait(_LOOK_SECONDS)
    return 0
