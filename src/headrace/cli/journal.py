"""``headrace journal``: what a server decided, and why."""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from headrace.cli.admin import FLAGS, add_admin_flags, admin_client
from headrace.cli.flags import load_settings
from headrace.cli.models import cache_dir
from headrace.config import read_environment
from headrace.errors import StartError, UsageError
from headrace.monitoring.shapes import JournalEntry, ServerState

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from headrace.types import Seconds

POLL_SECONDS: Seconds = 0.5
WRITE_POLLS = 20

_EPILOG = """examples:
  headrace journal              # the last decisions: dispatches, moves, drains, scaling
  headrace journal --follow     # and the next ones, as they are made
  headrace journal --json       # one object a line
  headrace journal --engine e0  # that engine's steps, into a file for `headrace replay`"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace journal``."""
    parser.description = "Print the decisions of a server's router and autoscaler with reasons."
    parser.epilog = _EPILOG
    parser.add_argument("--follow", action="store_true", help="go on until interrupted")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--engine", metavar="NAME", help="write this engine's journal of steps")
    parser.add_argument("--last", metavar="N", type=int, default=50, help="entries at first (50)")
    add_admin_flags(parser)


def main(args: argparse.Namespace) -> int:
    """Print them."""
    client = admin_client(args)
    if args.engine:
        print(written_by(args.engine, client.get("/state", ServerState), _incidents(args)))
        return 0
    entries = client.get("/journal", list[JournalEntry])
    show(entries[-args.last :] if args.last > 0 else [], as_json=args.json)
    pause = threading.Event()
    while args.follow:
        pause.wait(POLL_SECONDS)
        seen = entries[-1].number if entries else 0
        newer = client.get(f"/journal?after={seen}", list[JournalEntry])
        show(newer, as_json=args.json)
        entries = newer or entries
    return 0


def written_by(engine: str, state: ServerState, directory: Path) -> Path:
    """Let an engine write its journal of steps; return the file. Raises StartError."""
    pids = {row.replica: row.pid for row in state.replicas if row.pid}
    if engine not in pids:
        raise UsageError(f"there is no engine {engine!r} here: there are {', '.join(pids)}")
    pattern = f"{engine}-{pids[engine]}-*.journal"
    before = set(directory.glob(pattern))
    os.kill(pids[engine], signal.SIGUSR1)
    pause = threading.Event()
    for _ in range(WRITE_POLLS):
        if newer := set(directory.glob(pattern)) - before:
            return max(newer)
        pause.wait(POLL_SECONDS)
    raise StartError(
        f"no file came in {directory}: engine.journal_bytes may be 0, or model.cache_dir another"
    )


def _incidents(args: argparse.Namespace) -> Path:
    environment = read_environment()
    config = load_settings(args, FLAGS, environment).config
    return cache_dir(config, environment) / "incidents"


def show(entries: list[JournalEntry], *, as_json: bool) -> None:
    """Print entries, a line each."""
    for entry in entries:
        line = msgspec.json.encode(entry).decode() if as_json else line_of(entry)
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def line_of(entry: JournalEntry) -> str:
    """Return ``20:27:03.793 autoscaler scaled 0 to 3: an operator wants 3``."""
    time = datetime.fromtimestamp(entry.unix).astimezone().strftime("%H:%M:%S.%f")[:-3]
    return f"{time} {entry.source:<10} {entry.kind:<8} {entry.subject}: {entry.reason}"
