"""``headrace explain``: where a request's time went, and why it was sent where it was sent."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from headrace.cli.admin import add_admin_flags, admin_client
from headrace.cli.terminal import draws_bars
from headrace.cli.waterfall import Style, render
from headrace.config import read_environment
from headrace.errors import StartError, UsageError
from headrace.monitoring.shapes import Explanation, RequestRow

if TYPE_CHECKING:
    import argparse

    from headrace.server.admin.client import AdminClient

_EPILOG = """examples:
  headrace explain --last
  headrace explain chatcmpl-0f3a...     # the id of an answer, or its x-request-id header"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace explain``."""
    parser.usage = "headrace explain (ID | --last) [--json] [--admin PATH]"
    parser.description = "Show where each millisecond of a request went, and why it went there."
    parser.epilog = _EPILOG
    parser.add_argument("id", metavar="ID", nargs="?", help="the request")
    parser.add_argument("--last", action="store_true", help="the newest request")
    parser.add_argument("--json", action="store_true", help="print the explanation as JSON")
    add_admin_flags(parser)


def main(args: argparse.Namespace) -> int:
    """Print an explanation; return the exit code."""
    if (args.id is None) != args.last:
        raise UsageError("name one request by its id, or use --last")
    environment = read_environment()
    client = admin_client(args, environment)
    request_id = _newest(client) if args.last else args.id
    told = client.get(f"/explain/{quote(request_id, safe='')}", Explanation)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(told)).decode())
        return 0
    columns = shutil.get_terminal_size().columns
    is_plain = not draws_bars(environment, sys.stdout)
    print("\n".join(render(told, Style(columns=columns, is_plain=is_plain))))
    return 0


def _newest(client: AdminClient) -> str:
    requests = client.get("/requests", list[RequestRow])
    if not requests:
        raise StartError("the server has had no request so far: there is nothing to explain")
    return max(requests, key=lambda request: request.unix).id
