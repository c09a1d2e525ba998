"""``headrace scale``: how many replicas a server may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.cli.admin import add_admin_flags, admin_client
from headrace.monitoring.shapes import Done, ScaleOrder
from headrace.server.replica_range import parse_range

if TYPE_CHECKING:
    import argparse

_EPILOG = """examples:
  headrace scale 2      # exactly two from now on
  headrace scale 1:4    # at least one, at most four, by load"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace scale``."""
    parser.description = "Set how many replicas a server may have, while it runs."
    parser.epilog = _EPILOG
    parser.add_argument("range", metavar="N|FLOOR:CEILING", help="number of replicas, or range")
    add_admin_flags(parser)


def main(args: argparse.Namespace) -> int:
    """Order it; say what happens now."""
    wanted = parse_range(args.range, place="the range")
    order = ScaleOrder(floor=wanted.floor, ceiling=wanted.ceiling)
    print(admin_client(args).post("/scale", order, Done).message)
    return 0
