"""Where a running server keeps its sockets, and how a command finds them."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.config import Environment

PREFIX = "headrace-"
ADMIN_SOCKET = "admin.sock"
CONTROL_SOCKET = "{name}.control"
GOSSIP_SOCKET = "g{place}.gossip"
LONGEST_NAME = "g63-9999.control"

MAX_SOCKET_PATH_BYTES = 107
"""Of a Unix socket, on Linux (unix(7))."""


def runtime_base(environment: Environment) -> Path:
    """Return the directory that run directories are made in."""
    base = environment.runtime_dir
    return base if base is not None and base.is_dir() else Path(tempfile.gettempdir())


@contextmanager
def run_directory(environment: Environment) -> Iterator[Path]:
    """A new directory for sockets, mode 0700, gone afterwards. Raises StartError."""
    base = runtime_base(environment)
    try:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    except OSError as error:
        raise StartError(f"cannot make a directory in {base}: {error.strerror}") from None
    try:
        if len(bytes(directory / LONGEST_NAME)) > MAX_SOCKET_PATH_BYTES:
            raise StartError(f"{directory} is too long for a socket's path; set TMPDIR to less")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
