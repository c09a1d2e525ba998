"""Routes as a table. Who may come in is a property of each: only a public one needs no key.

Paths are compared as they were sent, byte for byte: nothing is decoded or normalised before it is
known whether the client may ask at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import MethodNotAllowed, RequestError, RouteNotFound
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

    @property
    def allow(self) -> str:
        """Methods that are answered, as in the Allow header field."""
        return "GET, HEAD, OPTIONS" if self.method == "GET" else f"{self.method}, OPTIONS"


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

    def identify(self, head: RequestHead) -> Principal:
        """Return who asks; public routes do not care. Raises RequestError."""
        route = self.find(head.path)
        if route is not None and route.public:
            return ANYBODY
        return self._keys.identify(head)

    def refuse(self, head: RequestHead) -> RequestError | None:
        """Return why a request may not be served, or None."""
        try:
            self.identify(head)
        except RequestError as error:
            return error
        route = self.find(head.path)
        if route is None:
            return RouteNotFound(f"there is nothing at {head.path[:200]}")
        if head.method not in route.allow.split(", "):
            refusal = MethodNotAllowed(f"{route.path} takes {route.allow}, not {head.method}")
            refusal.allow = route.allow
            return refusal
        return None
