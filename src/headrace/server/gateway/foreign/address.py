"""URLs of foreign replicas, as people give them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from headrace.errors import UsageError
from headrace.server.gateway.foreign.config import ForeignReplica

if TYPE_CHECKING:
    from collections.abc import Sequence
    from urllib.parse import SplitResult

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_EXAMPLE = "write it like http://127.0.0.1:8001"


def parse_replicas(urls: Sequence[str]) -> tuple[ForeignReplica, ...]:
    """Return the replicas at ``urls``, in that order. Raises UsageError."""
    if not urls:
        raise UsageError("no replica is named: add --replica http://HOST:PORT, once for each")
    replicas = tuple(parse_replica(url) for url in urls)
    seen: dict[str, str] = {}
    for url, replica in zip(urls, replicas, strict=True):
        if replica.name in seen:
            raise UsageError(
                f"--replica {url} names the same server as {seen[replica.name]}; name each once"
            )
        seen[replica.name] = url
    return replicas


def parse_replica(url: str) -> ForeignReplica:
    """Return the replica at ``http[s]://HOST[:PORT][/PREFIX]``. Raises UsageError.

    A ``/v1`` at the end is that of OpenAI's paths and no part of the prefix.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _wrong(url, str(error)) from None
    problem = _problem(parts)
    if problem:
        raise _wrong(url, problem)
    host = (parts.hostname or "").lower()
    port = port or _PORTS[parts.scheme]
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    replica = ForeignReplica(
        name="", host=host, port=port, prefix=prefix, tls=parts.scheme == "https"
    )
    return ForeignReplica(
        name=replica.authority + prefix,
        host=host,
        port=port,
        prefix=prefix,
        tls=parts.scheme == "https",
    )


def _problem(parts: SplitResult) -> str:
    if parts.scheme not in _PORTS or not parts.netloc:
        return "it does not begin with http:// or https://"
    if parts.username is not None or parts.password is not None:
        return "it has a password in it; set HEADRACE_FOREIGN_API_KEY instead"
    if not parts.hostname or _HOST.fullmatch(parts.hostname) is None:
        return "it has no host"
    if parts.port == 0:
        return "port 0 is nobody's"
    if parts.query or parts.fragment:
        return "it has a query or fragment"
    if _PREFIX.fullmatch(parts.path.rstrip("/")) is None:
        return "its path is not one"
    return ""


def _wrong(url: str, problem: str) -> UsageError:
    return UsageError(f"--replica {url[:200]!r} is not a server's URL: {problem}; {_EXAMPLE}")
