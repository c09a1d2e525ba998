"""The links to ready replicas, and what the replicas have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import NotReady
from headrace.server.gateway.planning import Chains

if TYPE_CHECKING:
    from headrace.server.links import ReplicaDescription, ReplicaLink
    from headrace.types import ReplicaId, Request, RequestId, Seconds, Tokens


class Replicas:
    """All serve one model: a replica with another one is not used.

    ``max_model_len`` is the longest prompt and output that every ready replica takes, None while
    none is ready. ``draining`` says which members drain (ready or not) and for how long.
    """

    def __init__(self, *, cache_secret: bytes, vocab_size: int) -> None:
        self.draining: dict[ReplicaId, Seconds] = {}
        self._cache_secret = cache_secret
        self._vocab_size = vocab_size
        self._links: dict[ReplicaId, ReplicaLink] = {}
        self._descriptions: dict[ReplicaId, ReplicaDescription] = {}
        self._chains: Chains | None = None

    @property
    def max_model_len(self) -> Tokens | None:
        """In tokens."""
        return min((each.max_model_len for each in self._descriptions.values()), default=None)

    def add(self, link: ReplicaLink, description: ReplicaDescription) -> str | None:
        """Take a replica in, or return why not."""
        self.remove(link.replica)
        if description.vocab_size < self._vocab_size:
            return f"it has {description.vocab_size} tokens, the tokenizer {self._vocab_size}"
        for other in self._descriptions.values():
            if other.model_identity != description.model_identity:
                return f"its model is {description.model_identity}, not {other.model_identity}"
            if other.block_size != description.block_size:
                return f"its blocks hold {description.block_size} tokens, not {other.block_size}"
        if not self._links:
            self._chains = Chains(
                secret=self._cache_secret,
                model_identity=description.model_identity,
                block_size=description.block_size,
            )
        self._links[link.replica] = link
        self._descriptions[link.replica] = description
        return None

    def remove(self, replica: ReplicaId) -> bool:
        """Forget a replica; return whether it was there."""
        self._descriptions.pop(replica, None)
        return self._links.pop(replica, None) is not None

    def pid(self, replica: ReplicaId) -> int:
        """Return the process of a replica, 0 while it is not ready."""
        description = self._descriptions.get(replica)
        return 0 if description is None else description.pid

    def name_blocks(
        self, group: tuple[Request, ...], cache_salt: str | None
    ) -> tuple[Request, ...]:
        """Return requests of one prompt with its block digests.

        While no replica was ever ready they cannot be known, and are added at ``submit``. Raises
        NotReady for salted requests then: the salt must not get lost on the way.
        """
        if self._chains is not None:
            return self._chains.name(group, cache_salt)
        if cache_salt is not None:
            raise NotReady("no replica is ready; try again shortly", param="cache_salt")
        return group

    def submit(self, replica: ReplicaId, request: Request) -> None:
        """Send a request, unless the replica is gone: then the Router is about to hear of it."""
        link = self._links.get(replica)
        if link is not None and self._chains is not None:
            if not request.chain_root:
                (request,) = self._chains.name((request,), None)
            link.submit(request)

    def abort(self, replica: ReplicaId, request_id: RequestId) -> None:
        """Tell a replica that a request is not wanted, if it is still there."""
        link = self._links.get(replica)
        if link is not None:
            link.abort(request_id)

    def want_snapshot(self, replica: ReplicaId) -> None:
        """Ask a replica for all of its prefix cache, if it is still there."""
        link = self._links.get(replica)
        if link is not None:
            link.want_snapshot()
