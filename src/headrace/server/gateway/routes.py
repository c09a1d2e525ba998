"""Routes as a table. Who may come in is a property of each: only a public one needs no key.

Paths are compared as they were sent, byte for byte: nothing is decoded or normalised before it is
known whether the client may ask at all.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from headrace.errors import AuthenticationFailed, MethodNotAllowed, RequestError, RouteNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest, RequestHead


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method. A ``path`` that ends in a slash stands for all below it."""

    method: str  # GET routes answer HEAD too
    path: str
    serve: Callable[[HttpRequest, Exchange], None]
    public: bool = False

    @property
    def allow(self) -> str:
        """Methods that are answered, as in the Allow header field."""
        return "GET, HEAD, OPTIONS" if self.method == "GET" else f"{self.method}, OPTIONS"


class Keys:
    """API keys, kept as digests and compared in constant time. No keys: everyone may come in."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = tuple(sha256(key.encode()).digest() for key in keys)

    def accept(self, head: RequestHead) -> bool:
        """Whether the request has a key, as ``Authorization: Bearer`` or ``x-api-key``."""
        if not self._digests:
            return True
        scheme, _, key = head.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = head.headers.get(b"x-api-key", b"")
        given = sha256(key.strip()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]  # always all
        return any(matches)


class RouteTable:
    """Finds routes, and refuses requests by their heads."""

    def __init__(self, routes: Sequence[Route], keys: Keys) -> None:
        self.routes = tuple(routes)
        self._keys = keys
        self._by_path = {route.path: route for route in routes}
        self._prefixes = tuple(route for route in routes if route.path.endswith("/"))

    def find(self, path: str) -> Route | None:
        """Return the route of a path, or None."""
        route = self._by_path.get(path)
        if route is not None:
            return route
        return next((each for each in self._prefixes if path.startswith(each.path)), None)

    def refuse(self, head: RequestHead) -> RequestError | None:
        """Return why a request may not be served, or None."""
        route = self.find(head.path)
        if (route is None or not route.public) and not self._keys.accept(head):
            return AuthenticationFailed(
                "a valid API key is needed: send it as 'Authorization: Bearer KEY'"
            )
        if route is None:
            return RouteNotFound(f"there is nothing at {head.path[:200]}")
        if head.method not in route.allow.split(", "):
            error = MethodNotAllowed(f"{route.path} takes {route.allow}, not {head.method}")
            error.allow = route.allow
            return error
        return None
