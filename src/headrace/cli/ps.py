"""``headrace ps``: a server's replicas, its load and its range."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import msgspec

from headrace.cli.admin import add_admin_flags, admin_client
from headrace.monitoring.shapes import GatewayRow, ReplicaRow, ServerState
from headrace.types import Role

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from headrace.types import Seconds

WATCH_SECONDS: Seconds = 1.0
_CLEAR = "\x1b[H\x1b[2J"

_EPILOG = """examples:
  headrace ps
  headrace ps --watch          # again and again
  headrace ps --json"""

_HEADS = (
    "REPLICA",
    "ROLE",
    "STATE",
    "PID",
    "REQUESTS",
    "KV",
    "CACHED",
    "INDEX",
    "SINCE",
    "RESTARTS",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace ps``."""
    parser.description = "Show the replicas of a server that runs here, their load and their range."
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--watch", action="store_true", help="go on until interrupted")
    add_admin_flags(parser)


def main(args: argparse.Namespace) -> int:
    """Print the table."""
    client = admin_client(args)
    pause = threading.Event()
    while True:
        state = client.get("/state", ServerState)
        text = msgspec.json.encode(state).decode() if args.json else page(state)
        clear = _CLEAR if args.watch and sys.stdout.isatty() else ""
        print(clear + text, flush=True)
        if not args.watch:
            return 0
        pause.wait(WATCH_SECONDS)


def page(state: ServerState) -> str:
    """Return what is shown of a state."""
    rows = [_HEADS, *(_cells(row) for row in state.replicas)]
    if all(row.role == Role.MIXED for row in state.replicas):
        rows = [(row[0], *row[2:]) for row in rows]
    troubled = (row for row in state.replicas if row.reason and row.state != "ready")
    why = [f"{row.replica}: {row.reason}" for row in troubled]
    return "\n".join((*_columns(rows), "", *why, *_summary(state)))


def _cells(row: ReplicaRow) -> Sequence[str]:
    others = f" + {row.others} of others" if row.others else ""
    running = f"{row.outstanding}{others}" + (f" ({row.waiting} wait)" if row.waiting else "")
    return (
        row.replica,
        row.role,
        row.state,
        str(row.pid or "-"),
        running,
        f"{row.kv_used:.0%}",
        f"{row.cached_share:.0%}",
        _index(row),
        duration(row.seconds_in_state),
        str(row.restarts),
    )


def _index(row: ReplicaRow) -> str:
    """What the router's knowledge of its prefix cache is worth, and how right it was lately."""
    accuracy = "" if row.index_accuracy is None else f" {row.index_accuracy:.0%}"
    return f"{row.index}{accuracy}" or "-"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _summary(state: ServerState) -> Iterator[str]:
    gateway = state.gateway
    if gateway is None:
        yield "gateway   does not answer; it is started again when it died"
    else:
        yield f"model     {gateway.model}"
        yield f"policy    {gateway.policy}"
        yield f"queue     {gateway.waiting} requests, {gateway.waiting_tokens:,} tokens"
        yield (
            f"rates     {gateway.rates.requests:.1f} requests/s, "
            f"{gateway.rates.output_tokens:.0f} output tokens/s"
        )
        if gateway.rates.with_targets:
            share = gateway.rates.goodput / gateway.rates.with_targets
            yield f"goodput   {gateway.rates.goodput:.1f} requests/s, {share:.0%} within targets"
    if len(state.gateways) > 1:
        yield f"gateways  {', '.join(_gateway(row) for row in state.gateways)}"
    if state.restarting:
        yield f"restart   {state.restarting}"
    if state.ceiling:
        yield f"scaling   {state.desired} wanted, {state.floor} to {state.ceiling} allowed"
    for decision in state.scaling[-1:]:
        yield f"last      {decision.present} to {decision.desired}: {decision.reason}"
    if state.console:
        yield f"console   {state.console}"
    yield f"server    {state.url}, up {duration(state.uptime)}, headrace {state.version}"


def _gateway(row: GatewayRow) -> str:
    if row.connected:
        return f"{row.gateway} (pid {row.pid})"
    return f"{row.gateway} ({'starting' if row.pid else 'down'})"


def duration(seconds: Seconds) -> str:
    """Return ``42s``, ``5m03s`` or ``2h07m``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m"
