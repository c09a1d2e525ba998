"""Who may ask the console: the right Host, no foreign Origin, and the token for everything in /api.

Host: a page of another site that makes its own name point to 127.0.0.1 (DNS rebinding) still
sends its own name. Origin: a page of another site that posts here names itself. The token travels
in a header that no other site's page can send without being asked first, and nobody answers that.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import TYPE_CHECKING

from headrace.errors import AuthenticationFailed, Forbidden, RequestError

if TYPE_CHECKING:
    from headrace.server.gateway.http.messages import RequestHead

_NAMES = ("127.0.0.1", "localhost", "[::1]")
_HTTP_PORT = 80
API = "/api/"


class Guard:
    """Refuses requests by their heads."""

    def __init__(self, *, token: str, port: int) -> None:
        self._digest = sha256(token.encode()).digest()
        hosts = [f"{name}:{port}" for name in _NAMES]
        if port == _HTTP_PORT:
            hosts += _NAMES
        self._hosts = frozenset(host.encode() for host in hosts)
        self._origins = frozenset(b"http://" + host for host in self._hosts)

    def refuse(self, head: RequestHead) -> RequestError | None:
        """Return why a request may not be answered, or None."""
        host = head.headers.get(b"host", b"").lower()
        if host not in self._hosts:
            names = ", ".join(sorted(host.decode() for host in self._hosts))
            return Forbidden(f"the console answers only as {names}")
        origin = head.headers.get(b"origin")
        if origin is not None and origin not in self._origins:
            return Forbidden("a page of another site may not use the console")
        if head.path.startswith(API) and not self._has_token(head):
            return AuthenticationFailed(
                "the console's token is missing or wrong: open the URL that `headrace serve` "
                "printed; `headrace ps` prints it again"
            )
        return None

    def _has_token(self, head: RequestHead) -> bool:
        scheme, _, token = head.headers.get(b"authorization", b"").partition(b" ")
        given = sha256(token.strip()).digest()
        return scheme.lower() == b"bearer" and hmac.compare_digest(given, self._digest)
