"""What commands that talk to a running server share: the flag, the settings, the client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.flags import Flag, add_flags, load_settings
from headrace.cli.places import runtime_base
from headrace.config import Environment, read_environment
from headrace.server.admin.client import AdminClient, find_socket

if TYPE_CHECKING:
    import argparse

FLAGS = (Flag("--admin", "server.admin", "PATH"),)


def add_admin_flags(parser: argparse.ArgumentParser) -> None:
    """Declare ``--admin`` and ``--config``."""
    add_flags(parser, FLAGS)


def admin_client(args: argparse.Namespace, environment: Environment | None = None) -> AdminClient:
    """Return a client of the server that is named, or of the only one that runs here.

    Raises Unreachable (exit code 3) without one, UsageError if there are several.
    """
    environment = environment or read_environment()
    named = load_settings(args, FLAGS, environment).config.server.admin
    path = Path(named).expanduser() if named else find_socket(runtime_base(environment))
    return AdminClient(path)
