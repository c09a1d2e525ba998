"""``headrace drain``: end one replica when its streams have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.cli.admin import add_admin_flags, admin_client
from headrace.monitoring.shapes import Done, DrainOrder

if TYPE_CHECKING:
    import argparse

_EPILOG = """examples:
  headrace drain r1            # nothing new goes there; it ends when its streams have ended
  headrace drain r1 --cancel   # back into service"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace drain``."""
    parser.description = (
        "End a replica: it takes nothing new, and its streams end or move on.\n"
        "Where the floor would be broken, a successor is started first."
    )
    parser.epilog = _EPILOG
    parser.add_argument("replica", metavar="REPLICA", help="its name in `headrace ps`")
    parser.add_argument("--cancel", action="store_true", help="take it back into service")
    add_admin_flags(parser)


def main(args: argparse.Namespace) -> int:
    """Order it; say what happens now."""
    order = DrainOrder(replica=args.replica, cancel=args.cancel)
    print(admin_client(args).post("/drain", order, Done).message)
    return 0
