"""Where a server listens, and who may reach it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import TYPE_CHECKING

from headrace.errors import AddressInUse, StartError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.server.settings import ServerConfig

BACKLOG = 1024


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket that listens on ``host:port``. Raises AddressInUse or UsageError.

    Clients that connect before anybody accepts wait in its backlog. Of ``shared`` ones there may
    be several on one port: the system gives each connection to one of them.
    """
    family, address = _resolve(host, port)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{host}:{port} is in use by another process; choose another port with --port "
                f"(0 takes any), or end that process"
            ) from None
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listening


def bind_all(host: str, port: int, number: int) -> list[socket.socket]:
    """Return so many sockets that listen on one port. Raises AddressInUse or UsageError.

    Another server's shared sockets on that port are no invitation: they are in use.
    """
    first = bind(host, port)
    if number == 1:
        return [first]
    port = first.getsockname()[1]
    first.close()
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < number:
            sockets.append(bind(host, port, shared=True))
    except StartError:
        for each in sockets:
            each.close()
        raise
    return sockets


def bind_unix(path: Path) -> socket.socket:
    """Return a Unix socket that listens at ``path``, for its owner only. Raises StartError.

    A socket that nobody listens on any more is replaced.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)  # from the first moment
    try:
        if path.is_socket() and not _is_served(path):
            path.unlink()
        listening.bind(str(path))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"another process listens at {path}; name another path") from None
        raise UsageError(f"cannot listen at {path}: {error.strerror or error}") from None
    finally:
        os.umask(previous)
    return listening


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def check_exposure(config: ServerConfig) -> None:
    """Refuse to open a server without a key to anybody but this machine. Raises UsageError."""
    if config.api_key or config.key_file or config.insecure_no_auth or is_loopback(config.host):
        return
    raise UsageError(
        f"host {config.host} can be reached from outside and no key is set: make one with "
        f"`headrace keys create` and name its file (server.key_file), set HEADRACE_SERVER_API_KEY "
        f"(or --api-key), or use --insecure-no-auth to allow everybody"
    )


def is_loopback(host: str) -> bool:
    """Whether every address of ``host`` is this machine's own. Raises UsageError."""
    addresses = [str(address[0]).partition("%")[0] for _, address in _resolve(host, 0)]
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def url_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket, with the port that the system chose."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolve(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """Return (family, socket address) of each address of a host; never empty."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"host {host} is not an address of this machine: {error}") from None
    return [(family, address) for family, _, _, _, address in found]
