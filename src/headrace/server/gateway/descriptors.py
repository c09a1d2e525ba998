"""File descriptors of a gateway: as many as may be, and connections only as far as they go.

A process without descriptors can neither accept nor refuse a connection; it can only spin or wait.
So the cap on connections stays below the system's limit, and who is over the cap is told so.
"""

from __future__ import annotations

import logging
import resource
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.monitoring.logging import event as log_event

if TYPE_CHECKING:
    from headrace.server.gateway.config import GatewayConfig

OWN: Final = 64
"""For everything but clients: engines, control, files, the loop itself."""

_TURNED_AWAY: Final = 2
"""Times ``reserved_connections``: so many connections over the cap may be open for a moment."""

_LOG = logging.getLogger(__name__)


def raise_limit() -> int:
    """Raise this process's limit of descriptors as far as it may; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def fitted(config: GatewayConfig, limit: int, *, for_each: int = 1) -> GatewayConfig:
    """Return ``config`` with no more client connections than ``limit`` descriptors allow.

    Each client takes ``for_each``: 2 where a connection to a replica belongs to it.
    """
    http = config.http
    room = (limit - OWN) // for_each - _TURNED_AWAY * http.reserved_connections
    if limit == resource.RLIM_INFINITY or room >= http.max_connections:
        return config
    log_event(
        _LOG,
        logging.WARNING,
        "fewer connections than http.max_connections: too few file descriptors",
        limit=limit,
        connections=max(1, room),
    )
    http = msgspec.structs.replace(http, max_connections=max(1, room))
    return msgspec.structs.replace(config, http=http)
