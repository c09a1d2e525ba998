"""OpenAI's paths in front of foreign replicas: what comes in goes on as it came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from headrace.errors import ModelNotFound
from headrace.server.gateway.foreign.naming import Named, name_chunks
from headrace.server.gateway.foreign.passage import Passage, PassedRequest
from headrace.server.gateway.foreign.scanning import scan
from headrace.server.gateway.http.messages import Response
from headrace.server.gateway.keeping import SESSION_FIELD, session_of
from headrace.server.gateway.urgency import SAYS_NOTHING, urgency_of
from headrace.types import Request, RequestId

if TYPE_CHECKING:
    from headrace.clock import Clock
    from headrace.monitoring.records import RequestRecord
    from headrace.server.gateway.book import Book
    from headrace.server.gateway.figures import Figures
    from headrace.server.gateway.foreign.answers import Billing
    from headrace.server.gateway.foreign.kv_names import TokenNames
    from headrace.server.gateway.foreign.pools import ModelPool, ModelPools
    from headrace.server.gateway.foreign.scanning import RequestScan
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest, ResponseContext
    from headrace.server.gateway.urgency import Urgency
    from headrace.types import Seconds

PASSED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MODELS_PATH = "/v1/models/"

_PASSED_FIELDS = (b"accept", b"content-type", SESSION_FIELD)
"""Of a client's header fields those that replicas see, beside ``x-request-id``."""

_USUAL_OUTPUT = 256  # tokens, for the balancer, where a client sets no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class PassThrough:
    """POST to one of PASSED_PATHS."""

    pools: ModelPools
    book: Book
    figures: Figures
    clock: Clock
    request_timeout: Seconds

    def serve(self, request: HttpRequest, exchange: Exchange) -> None:
        """Begin a passage; it answers. Raises RequestError."""
        begun_at = self.clock.now()
        urgency = urgency_of(SAYS_NOTHING, request.head.headers, exchange.context.principal)
        found = scan(request.body)
        pool = self.pools.resolve(found.model)
        if pool.names is None:
            self._pass(request, exchange, found, pool, urgency, begun_at, None)
        else:
            self._name(pool.names, request, exchange, found, pool, urgency, begun_at)

    def _name(
        self,
        names: TokenNames,
        request: HttpRequest,
        exchange: Exchange,
        found: RequestScan,
        pool: ModelPool,
        urgency: Urgency,
        begun_at: Seconds,
    ) -> None:
        """Begin a passage when its prompt is tokenised, unless its client has left by then."""

        def go_on(named: Named | None) -> None:
            if not exchange.closed:
                self._pass(request, exchange, found, pool, urgency, begun_at, named)

        names.name(request.body, go_on)

    def _pass(
        self,
        request: HttpRequest,
        exchange: Exchange,
        found: RequestScan,
        pool: ModelPool,
        urgency: Urgency,
        begun_at: Seconds,
        named: Named | None,
    ) -> None:
        text, context = found.text, exchange.context
        named = named or self._name_text(pool, text, context.principal.tenant, found.cache_salt)
        passed = PassedRequest(
            path=request.head.path,
            body=request.body,
            model=found.model,
            headers=_passed_fields(request, context, urgency),
            stream=found.stream is True,
            prompt_bytes=len(text),
            prompt_tokens=named.prompt_tokens,
        )
        record = self.book.open(
            context, urgency=urgency, begun_at=begun_at, prompt_tokens=named.prompt_tokens
        )
        session = found.prompt_cache_key or session_of(request.head.headers)
        asked = self._request(found, record, session, named)
        self._begin(pool, passed, exchange, record, asked)

    def _name_text(
        self, pool: ModelPool, text: bytes, tenant: str, cache_salt: str | None
    ) -> Named:
        """Name a prompt by its bytes, or say only how long it is where others go by tokens."""
        root = self.pools.root(pool, tenant, cache_salt)
        chain = name_chunks(root, text) if pool.names is None else ()
        return Named(root, chain, pool.estimate.tokens(len(text)))

    def _request(
        self, found: RequestScan, record: RequestRecord, session: str, named: Named
    ) -> Request:
        limit = record.targets.deadline or self.request_timeout
        return Request(
            id=RequestId(record.id),
            prompt=(),
            max_tokens=found.output_limit or _USUAL_OUTPUT,
            chain=named.chain,
            chain_root=named.root,
            deadline=record.arrived_at + min(limit, self.request_timeout),
            tenant=record.tenant,
            priority=record.priority,
            session=session,
        )

    def _begin(
        self,
        pool: ModelPool,
        passed: PassedRequest,
        exchange: Exchange,
        record: RequestRecord,
        request: Request,
    ) -> None:
        def ended(passage: Passage, billing: Billing | None, unwanted: bool) -> None:
            pool.release((request.id,), unwanted=unwanted)
            self.book.close(record)
            if billing is not None:
                pool.estimate.learn(passed.prompt_bytes, billing.prompt_tokens)

        passage = Passage(
            passed,
            exchange,
            record=record,
            figures=self.figures,
            ended=ended,
        )
        exchange.on_gone = lambda: passage.gone(self.clock.now())
        pool.begin(passage, request)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModels:
    """What the replicas serve, together."""

    pools: ModelPools

    def models(self, _request: HttpRequest, exchange: Exchange) -> None:
        """GET /v1/models: each model as the first replica that has it describes it."""
        cards = [msgspec.Raw(card) for card in self.pools.cards.values()]
        exchange.reply(Response(200, msgspec.json.encode({"object": "list", "data": cards})))

    def one_model(self, request: HttpRequest, exchange: Exchange) -> None:
        """GET /v1/models/{id}."""
        name = unquote(request.head.path.removeprefix(MODELS_PATH))
        card = self.pools.cards.get(name)
        if card is None:
            self.pools.resolve(name)  # raises where nobody knows it
            raise ModelNotFound(f"no replica serves {name[:100]!r} now", param="model")
        exchange.reply(Response(200, card))


def _passed_fields(request: HttpRequest, context: ResponseContext, urgency: Urgency) -> bytes:
    fields = request.head.headers
    shown = {name: fields[name] for name in _PASSED_FIELDS if name in fields}
    shown[b"x-request-id"] = (context.client_request_id or context.request_id).encode()
    shown |= urgency.fields(fields)
    return b"".join([b"%b: %b\r\n" % field for field in shown.items()])
