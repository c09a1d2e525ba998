"""Where to listen and to connect to: TCP or a Unix socket, and how to step between two."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import UsageError
from headrace.server.address import bind, bind_unix

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from headrace.types import Seconds

UNIX = "unix:"
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and port, or the ``path`` of a Unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"{UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def bind(self) -> socket.socket:
        """Return a listening socket. Raises StartError."""
        return bind(self.host, self.port) if self.path is None else bind_unix(self.path)

    async def connect(
        self, *, limit_bytes: int, patience: Seconds
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect. Raises OSError, of which TimeoutError is one."""
        async with asyncio.timeout(patience):
            if self.path is not None:
                return await asyncio.open_unix_connection(self.path, limit=limit_bytes)
            return await asyncio.open_connection(self.host, self.port, limit=limit_bytes)


def parse_endpoint(text: str) -> Endpoint:
    """Read ``HOST:PORT``, ``[V6]:PORT``, ``:PORT`` (this machine) or ``unix:PATH``."""
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path:
            raise UsageError(f"{text!r} names no socket: write {UNIX}/path/to/it")
        return Endpoint(path=Path(path))
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > _MAX_PORT:
        raise UsageError(f"{text!r} is no address: write HOST:PORT or {UNIX}PATH")
    return Endpoint(host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port))


@contextmanager
def taken_over(path: Path) -> Iterator[tuple[socket.socket, Endpoint]]:
    """Step before a Unix socket that somebody listens at: yield our socket there, and theirs.

    Connections that are open stay as they are; new ones come to us. At the end everything is put
    back, unless somebody else listens there by then.
    """
    theirs = path.with_name(f"{path.name}.real")
    if not path.is_socket():
        raise UsageError(f"{path} is no socket")
    if theirs.exists():
        raise UsageError(f"{theirs} exists: another proxy stands before {path}")
    path.rename(theirs)
    try:
        with bind_unix(path) as ours:
            number = path.stat().st_ino
            yield ours, Endpoint(path=theirs)
    finally:
        if path.exists() and path.stat().st_ino != number:
            theirs.unlink(missing_ok=True)
        else:
            theirs.replace(path)
