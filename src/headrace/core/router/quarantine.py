"""Quarantine: requests that are not to be sent again, because replicas died of them.

Known by a digest of what an engine gets to see (the tenant's salt, the prompt, how tokens are drawn
and what they must obey) without the seed, which may be drawn anew each time. It is bounded and
forgets: what killed an engine of today may do no harm to the next version.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.types import Request, Seconds

MAX_REMEMBERED = 1024
REMEMBERED_FOR: Seconds = 600.0


class Quarantine:
    """Of one Router. While nobody is in it, asking costs nothing."""

    def __init__(self) -> None:
        self._until: dict[bytes, Seconds] = {}  # the one asked for last is the last

    def __len__(self) -> int:
        return len(self._until)

    def add(self, request: Request, now: Seconds) -> None:
        """Refuse this request from now on, for REMEMBERED_FOR."""
        key = fingerprint(request)
        self._until.pop(key, None)
        self._until[key] = now + REMEMBERED_FOR
        if len(self._until) > MAX_REMEMBERED:
            del self._until[next(iter(self._until))]

    def left(self, request: Request, now: Seconds) -> Seconds:
        """Return for how long this request is still refused, 0 if it is not."""
        if not self._until:
            return 0.0
        key = fingerprint(request)
        until = self._until.pop(key, now)
        if until <= now:
            return 0.0
        self._until[key] = until
        return until - now


def fingerprint(request: Request) -> bytes:
    """Return what two requests have in common that are the same to an engine."""
    digest = sha256(request.chain_root)
    plain = replace(request.sampling, seed=0, choice=0)
    digest.update(repr((request.tenant, plain, request.constraint)).encode())
    digest.update(array("q", request.prompt).tobytes())
    return digest.digest()
