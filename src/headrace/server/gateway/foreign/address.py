"""Foreign replicas and aliases, as people give them.

A replica is ``URL[,OPTION=VALUE...]``, with the options of ``_OPTIONS``; an alias ``NAME=MODEL``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from headrace.errors import UsageError
from headrace.server.gateway.foreign.config import ForeignReplica, Migration
from headrace.server.gateway.foreign.kv_options import KV_OPTIONS, check_alone, check_together
from headrace.server.gateway.foreign.servers import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from urllib.parse import SplitResult

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_EXAMPLE = "write it like http://127.0.0.1:8001"


def parse_replicas(texts: Sequence[str]) -> tuple[ForeignReplica, ...]:
    """Return the replicas that ``texts`` name, in that order. Raises UsageError."""
    if not texts:
        raise UsageError("no replica is named: add --replica http://HOST:PORT, once for each")
    replicas = tuple(parse_replica(text) for text in texts)
    seen: dict[str, str] = {}
    for text, replica in zip(texts, replicas, strict=True):
        if replica.name in seen:
            raise UsageError(
                f"--replica {text} names the same server as {seen[replica.name]}; name each once"
            )
        seen[replica.name] = text
    if (total := sum(replica.canary for replica in replicas)) > 1:
        raise UsageError(f"canaries take {total:.0%} of the requests together; at most 100% can be")
    check_together(replicas)
    if all(replica.canary for replica in replicas):
        raise UsageError("every replica is a canary; name one without canary= for the other share")
    return replicas


def parse_replica(text: str) -> ForeignReplica:
    """Return the replica at ``http[s]://HOST[:PORT][/PREFIX][,OPTION=VALUE...]``.

    A ``/v1`` at the end of the URL is that of OpenAI's paths and no part of the prefix. Raises
    UsageError.
    """
    url, *options = text.split(",")
    replica = _at(url)
    given: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if name not in _OPTIONS or not equals or not value or name in given:
            twice = " (it is there twice)" if name in given else ""
            known = ", ".join(f"{each}=" for each in _OPTIONS)
            raise UsageError(
                f"--replica {url}: {option[:200]!r} is no option{twice}; options are {known}"
            )
        given[name] = value
    try:
        values = {name: _OPTIONS[name](value) for name, value in given.items()}
    except ValueError as error:
        raise UsageError(f"--replica {url}: {error}") from None
    fields = {name.replace("-", "_"): value for name, value in values.items()}
    replica = msgspec.structs.replace(replica, **fields)
    check_alone(replica, given)
    return replica


def parse_aliases(texts: Sequence[str]) -> Mapping[str, str]:
    """Return for each alias the model it stands for. Raises UsageError."""
    aliases: dict[str, str] = {}
    for text in texts:
        name, _, model = text.partition("=")
        if not name or not model or name == model:
            raise UsageError(f"--alias {text[:200]!r} is none; write it like gpt-4o-mini=llama-8b")
        if name in aliases:
            raise UsageError(f"--alias {name} is given twice: for {aliases[name]} and for {model}")
        aliases[name] = model
    for name, model in aliases.items():
        if model in aliases:
            raise UsageError(f"--alias {name}={model}: {model} is an alias; name the model itself")
    return aliases


def _at(url: str) -> ForeignReplica:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _wrong(url, str(error)) from None
    problem = _problem(parts)
    if problem:
        raise _wrong(url, problem)
    replica = ForeignReplica(
        name="",
        host=(parts.hostname or "").lower(),
        port=port or _PORTS[parts.scheme],
        prefix=parts.path.rstrip("/").removesuffix("/v1"),
        tls=parts.scheme == "https",
    )
    return msgspec.structs.replace(replica, name=replica.authority + replica.prefix)


def _weight(text: str) -> float:
    value = _number(text)
    if not 0.01 <= value <= 100:
        raise ValueError(f"weight={text} is none; use 0.01 to 100, where 1 is usual")
    return value


def _share(text: str) -> float:
    value = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value <= 1:
        raise ValueError(f"canary={text} is no share; write it like 5% or 0.05")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")  # in no range


def _server(text: str) -> Server:
    try:
        return Server(text)
    except ValueError:
        raise ValueError(f"server={text} is not known; known are {', '.join(Server)}") from None


def _migration(text: str) -> Migration:
    try:
        return Migration(text)
    except ValueError:
        raise ValueError(f"migration={text} is none; use {', '.join(Migration)}") from None


_OPTIONS: Mapping[str, Callable[[str], object]] = {
    "model": str,
    "alias": str,
    "weight": _weight,
    "canary": _share,
    "server": _server,
    "migration": _migration,
    **KV_OPTIONS,
}


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
