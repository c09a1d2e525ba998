"""Pools: for each model the replicas that serve it, with a Router of their own.

A pool is called as its replicas call their model, or as ``alias=`` of a replica says, so that
replicas with different names for one model can be together. A replica that serves two models is in
two pools; what one Router learns of it the other has to learn itself. Pools come into being when a
replica first names their model and stay: a model whose replicas are gone for the moment is known,
and requests for it wait.
"""

from __future__ import annotations

import difflib
import hmac
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.kvcache.chain import chain_root
from headrace.core.router.events import Drain, LoadSeen
from headrace.errors import InvalidRequest, ModelNotFound, NotReady
from headrace.monitoring.logging import event as log_event
from headrace.server.gateway.foreign.editing import set_fields
from headrace.server.gateway.foreign.link import ForeignLink
from headrace.server.gateway.foreign.naming import CHUNK_BYTES, CHUNK_TOKENS, TokenEstimate
from headrace.server.links import ReplicaDescription
from headrace.types import ReplicaId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from headrace.core.router.machine import Router
    from headrace.server.gateway.foreign.cards import ModelCard
    from headrace.server.gateway.foreign.kv_building import KvEvents
    from headrace.server.gateway.foreign.kv_names import TokenNames
    from headrace.server.gateway.foreign.passage import Passage
    from headrace.server.gateway.foreign.upstream import Upstream
    from headrace.server.gateway.traffic import Traffic
    from headrace.server.links import ReplicaLink
    from headrace.types import Request, RequestId, Seconds, Tokens

_LOG = logging.getLogger(__name__)

MAX_POOLS = 1024
_MAX_ROOTS = 4096
_UNKNOWN_LENGTH = 1 << 30  # of a model's context: the replica judges


class ForeignReplicas:
    """The links of one pool, as its Traffic uses them."""

    def __init__(self) -> None:
        self.draining: Mapping[ReplicaId, Seconds] = {}
        self._links: dict[ReplicaId, ReplicaLink] = {}

    def add(self, link: ReplicaLink, description: ReplicaDescription) -> str | None:
        """Take a replica in; none is refused."""
        self._links[link.replica] = link
        return None

    def remove(self, replica: ReplicaId) -> bool:
        """Forget a replica; return whether it was known."""
        return self._links.pop(replica, None) is not None

    def submit(self, replica: ReplicaId, request: Request) -> None:
        """Send an attempt, unless the replica is gone: then the Router is about to hear of it."""
        link = self._links.get(replica)
        if link is not None:
            link.submit(request)

    def abort(self, replica: ReplicaId, request_id: RequestId) -> None:
        """Give an attempt up, if its replica is still there."""
        link = self._links.get(replica)
        if link is not None:
            link.abort(request_id)

    def want_snapshot(self, replica: ReplicaId) -> None:
        """Foreign replicas cannot list what they have cached; kv_events.py asks for events."""


@dataclass(slots=True, kw_only=True)
class ModelPool:
    """One model's replicas and requests. ``names``: how prompts are named, None: by their text."""

    model: str
    router: Router
    traffic: Traffic
    names: TokenNames | None = None
    passages: dict[RequestId, Passage] = field(default_factory=dict)
    estimate: TokenEstimate = field(default_factory=TokenEstimate)

    def begin(self, passage: Passage, request: Request) -> None:
        """Ask the Router for a place."""
        self.passages[request.id] = passage
        prompt_tokens = passage.request.prompt_tokens
        self.traffic.generations.begin(passage, ((request,),), prompt_tokens)

    def release(self, request_ids: tuple[RequestId, ...], *, unwanted: bool) -> None:
        """Forget passages that are over; if ``unwanted``, replicas are told."""
        for request_id in request_ids:
            self.passages.pop(request_id, None)
        self.traffic.generations.release(request_ids, unwanted=unwanted)


class ModelPools:
    """All pools, and who is in which. ``build`` makes a Router and a Traffic for a model.

    ``aliases`` are further names of models, as operators give them; ``events``: of replicas that
    publish what they have cached.
    """

    def __init__(
        self,
        build: Callable[[str], tuple[Router, Traffic]],
        *,
        aliases: Mapping[str, str],
        cache_secret: bytes,
        api_key: str,
        events: KvEvents,
    ) -> None:
        self._build = build
        self._events = events
        self._aliases = aliases
        self._cache_secret = cache_secret
        self._api_key = api_key
        self._pools: dict[str, ModelPool] = {}
        self._names: dict[str, str] = {}  # of pools, by what replicas call their models
        self._roots: dict[tuple[str, str], bytes] = {}  # by model and tenant, without salts
        self._cards: dict[ReplicaId, Mapping[str, bytes]] = {}  # by pool
        self._links: dict[ReplicaId, list[ForeignLink]] = {}

    @property
    def pools(self) -> tuple[ModelPool, ...]:
        """In the order in which their models were first heard of."""
        return tuple(self._pools.values())

    @property
    def cards(self) -> dict[str, bytes]:
        """What ready replicas say of each model, the first replica's word; then the aliases."""
        merged: dict[str, bytes] = {}
        for cards in self._cards.values():
            for model, card in cards.items():
                merged.setdefault(model, card)
        for alias, target in self._aliases.items():
            described = merged.get(self._names.get(target, target))
            if described is not None:
                merged[alias] = _renamed(described, alias)
        return merged

    def ready(self, upstream: Upstream, cards: Mapping[str, ModelCard]) -> None:
        """A replica answers and serves these models."""
        replica = _replica_id(upstream)
        self.lost(upstream, "it serves other models than before")
        shown = self._cards[replica] = {}
        links = self._links[replica] = []
        for card in cards.values():
            model = upstream.replica.alias or card.id
            pool = self._pool(model)
            if pool is None:
                log_event(_LOG, logging.WARNING, "over 1024 models; one is ignored", model=model)
                continue
            shown[model] = _renamed(bytes(card.raw), model) if model != card.id else bytes(card.raw)
            if model != card.id:
                self._names[card.id] = model
            link = ForeignLink(
                replica,
                upstream,
                model=card,
                passages=pool.passages,
                events=pool.traffic,
                api_key=self._api_key,
            )
            links.append(link)
            pool.traffic.replica_ready(
                link,
                _describe(replica, model, CHUNK_TOKENS if pool.names is None else pool.names.unit),
                weight=upstream.replica.weight,
                canary=upstream.replica.canary,
                lists_blocks=False,
            )
            if (follower := self._events.followers.get(replica)) is not None:
                follower.ready(pool.traffic.feed)

    def lost(self, upstream: Upstream, reason: str) -> None:
        """A replica does not answer any more, or serves something else."""
        replica = _replica_id(upstream)
        if (follower := self._events.followers.get(replica)) is not None:
            follower.lost()
        for link in self._links.pop(replica, ()):
            link.lose(reason)
        for model in self._cards.pop(replica, ()):
            pool = self._pools.get(model)
            if pool is not None:
                pool.traffic.replica_lost(replica, reason)

    def requests_at(self, upstream: Upstream) -> int:
        """Our requests at a replica, of all pools."""
        return sum(self._outstanding(upstream).values())

    def loaded(self, upstream: Upstream, num_others: int) -> None:
        """A replica has so many requests that did not come from here."""
        counts = self._outstanding(upstream)
        total = num_others + sum(counts.values())
        for model, number in counts.items():
            self._pools[model].traffic.feed(LoadSeen(_replica_id(upstream), total - number))

    async def drain(self, limit: Seconds) -> None:
        """Take nothing new; return when every request has ended, after ``limit`` at the latest."""
        for pool in self.pools:
            pool.traffic.feed(Drain(limit))
        for pool in self.pools:
            await pool.traffic.drained

    def resolve(self, model: str | None) -> ModelPool:
        """Return the pool of a model. Raises ModelNotFound, InvalidRequest and NotReady."""
        name = self._aliases.get(model or "", model or "")
        pool = self._pools.get(name) or self._pools.get(self._names.get(name, ""))
        if pool is not None:
            return pool
        if not self._pools:
            raise NotReady("no replica has answered yet; try again shortly")
        if model and name != model:
            message = f"{model[:100]!r} stands for {name[:100]!r}, which no replica serves"
            raise ModelNotFound(message, param="model")
        if model:
            raise ModelNotFound(_not_found(model, (*self._pools, *self._aliases)), param="model")
        if len(self._pools) > 1:
            raise InvalidRequest(f"name a model: {_some(self._pools)}", param="model")
        return next(iter(self._pools.values()))

    def root(self, pool: ModelPool, tenant: str, cache_salt: str | None) -> bytes:
        """Return what a prompt's digests begin with: tenants and salts are kept apart."""
        if cache_salt is not None:
            return self._make_root(pool.model, tenant, cache_salt)
        place = (pool.model, tenant)
        root = self._roots.get(place)
        if root is None:
            if len(self._roots) >= _MAX_ROOTS:
                self._roots.clear()
            root = self._roots[place] = self._make_root(pool.model, tenant, None)
        return root

    def _outstanding(self, upstream: Upstream) -> dict[str, int]:
        """Our requests at a replica, by pool."""
        replica = _replica_id(upstream)
        return {
            model: view.outstanding
            for model in self._cards.get(replica, ())
            for view in self._pools[model].router.replicas
            if view.replica == replica
        }

    def _make_root(self, model: str, tenant: str, cache_salt: str | None) -> bytes:
        salt = hmac.digest(self._cache_secret, tenant.encode(), "sha256")
        if cache_salt is not None:
            salt = hmac.digest(salt, cache_salt.encode(errors="surrogatepass"), "sha256")
        return chain_root(salt=salt, model_identity=model, block_size=CHUNK_BYTES)

    def _pool(self, model: str) -> ModelPool | None:
        pool = self._pools.get(model)
        if pool is None and len(self._pools) < MAX_POOLS:
            router, traffic = self._build(model)
            pool = self._pools[model] = ModelPool(
                model=model, router=router, traffic=traffic, names=self._events.names.get(model)
            )
        return pool


def _replica_id(upstream: Upstream) -> ReplicaId:
    return ReplicaId(upstream.replica.name)


def _describe(replica: ReplicaId, model: str, block_size: Tokens) -> ReplicaDescription:
    return ReplicaDescription(
        replica=replica,
        model_identity=model,
        vocab_size=0,
        max_model_len=_UNKNOWN_LENGTH,
        block_size=block_size,
        num_blocks=0,
        max_num_seqs=0,
        pid=0,
    )


def _renamed(card: bytes, name: str) -> bytes:
    return set_fields(card, {"id": json.dumps(name).encode()})


def _not_found(model: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(model, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {_some(known)}"
    return f"model {model[:100]!r} is not served here; {hint}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
