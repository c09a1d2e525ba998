"""Routes as a table. Who may come in is a property of each: only a public one needs no key.

Paths are compared as they were sent, byte for byte: nothing is decoded or normalised before it is
known whether the client may ask at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import MethodNotAllowed, RouteNotFound
from headrace.server.keys import ANYBODY, Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest, RequestHead
    from headrace.server.keys import Principal

__all__ = ["Keys", "Route", "RouteTable"]


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method. A ``path`` that ends in a slash stands for all below it."""

    method: str  # GET routes answer HEAD too
    path: str
    serve: Callable[[HttpRequest, Exchange], None]
    public: bool = False

    def takes(self, method: str) -> bool:
        """Whether a method is answered."""
        return method in (self.method, "OPTIONS") or (method == "HEAD" and self.method == "GET")

    @property
    def allow(self) -> str:
        """Methods that are answered, as in the Allow header field."""
        return "GET, HEAD, OPTIONS" if self.method == "GET" else f"{self.method}, OPTIONS"


class Admitted(NamedTuple):
    """A request that may be served, by its head."""

    route: Route
    principal: Principal


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

    def admit(self, head: RequestHead) -> Admitted:
        """Return who asks and where to; public routes do not care who. Raises RequestError."""
        route = self.find(head.path)
        public = route is not None and route.public
        principal = ANYBODY if public else self._keys.identify(head)
        if route is None:
            raise RouteNotFound(f"there is nothing at {head.path[:200]}")
        if not route.takes(head.method):
            refusal = MethodNotAllowed(f"{route.path} takes {route.allow}, not {head.method}")
            refusal.allow = route.allow
            raise refusal
        return Admitted(route, principal)
