"""Followers: streams that have left a living replica and may still fetch their blocks from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.core.router.requests import Tracked
    from headrace.types import ReplicaId, RequestId


class Followers:
    """By replica. A stream follows one at most, until its first answer elsewhere or its end."""

    def __init__(self) -> None:
        self._of: dict[ReplicaId, set[RequestId]] = {}

    def of(self, replica: ReplicaId) -> frozenset[RequestId]:
        """Return who follows a replica."""
        return frozenset(self._of.get(replica, ()))

    def follow(self, tracked: Tracked, replica: ReplicaId) -> None:
        """A request leaves a replica, and its blocks stay there."""
        self.settle(tracked)
        tracked.left = replica
        self._of.setdefault(replica, set()).add(tracked.id)

    def settle(self, tracked: Tracked) -> None:
        """A request needs nothing more of the replica that it left."""
        if tracked.left is None:
            return
        ids = self._of[tracked.left]
        ids.discard(tracked.id)
        if not ids:
            del self._of[tracked.left]
        tracked.left = None
