"""Crowd: the open connections of a process, and whether there may be one more."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING

from headrace.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from headrace.errors import RequestError
    from headrace.server.gateway.http.connection import Connection
    from headrace.server.gateway.http.limits import HttpLimits

_ALL = "connections"
_PER_ADDRESS = "ip/"


class Crowd:
    """``elsewhere`` says how many other processes of this server have, by the names in ``held``."""

    def __init__(self, limits: HttpLimits, elsewhere: Callable[[str], int]) -> None:
        self._limits = limits
        self._elsewhere = elsewhere
        self._connections: dict[Connection, str] = {}
        self._per_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._connections))

    def add(self, connection: Connection, address: str) -> RequestError | None:
        """Take a connection in; return why it is one too many, if it is."""
        refusal = self._refusal(address)
        self._connections[connection] = address
        self._per_address[address] += 1
        return refusal

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        address = self._connections.pop(connection)
        self._per_address[address] -= 1
        if self._per_address[address] == 0:
            del self._per_address[address]

    def held(self) -> Mapping[str, int]:
        """Return the connections that count against a limit: all, and those of each address."""
        exempt = self._limits.loopback_is_exempt
        held = {
            _PER_ADDRESS + address: number
            for address, number in self._per_address.items()
            if not (exempt and _is_local(address))
        }
        held[_ALL] = len(self._connections)
        return held

    def _refusal(self, address: str) -> RequestError | None:
        limits = self._limits
        if len(self._connections) + self._elsewhere(_ALL) >= limits.max_connections:
            return Overloaded(f"over {limits.max_connections} connections")
        others = self._elsewhere(_PER_ADDRESS + address)
        if self._per_address[address] + others < limits.max_connections_per_ip:
            return None
        if limits.loopback_is_exempt and _is_local(address):
            return None
        return Overloaded(f"over {limits.max_connections_per_ip} connections from one address")


@lru_cache(maxsize=4096)
def _is_local(address: str) -> bool:
    return address == "unix" or ip_address(address).is_loopback
