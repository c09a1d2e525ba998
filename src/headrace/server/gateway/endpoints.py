"""The small endpoints: models, health, metrics, tokenisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from headrace.errors import InvalidRequest
from headrace.server.gateway.api.decoding import BodyDecoder
from headrace.server.gateway.api.requests import DetokenizeRequest, TokenizeRequest
from headrace.server.gateway.api.responses import Detokenized, ModelCard, ModelList, Tokenized
from headrace.server.gateway.health import judge
from headrace.server.gateway.http.messages import Response

if TYPE_CHECKING:
    from headrace.clock import Clock
    from headrace.core.router.machine import Router
    from headrace.server.gateway.health import Health
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest
    from headrace.server.gateway.model import ServedModel
    from headrace.server.gateway.prompting import Prompter
    from headrace.server.gateway.scrape import Scrape
    from headrace.types import Seconds

MODELS_PATH = "/v1/models/"

_decode_tokenize = BodyDecoder(TokenizeRequest)
_decode_detokenize = BodyDecoder(DetokenizeRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateEndpoints:
    """Whether and how well this server runs."""

    router: Router
    clock: Clock
    stuck_after: Seconds
    scrape: Scrape

    def live(self, _request: HttpRequest, exchange: Exchange) -> None:
        """GET /live: the loop turns, or there would be no answer."""
        exchange.reply(Response(200, b'{"ok":true}'))

    def ready(self, _request: HttpRequest, exchange: Exchange) -> None:
        """GET /ready: requests are taken."""
        health = self._judge(stuck_after=float("inf"))
        exchange.reply(_state(health))

    def health(self, _request: HttpRequest, exchange: Exchange) -> None:
        """GET /health: requests are taken and steps progress."""
        exchange.reply(_state(self._judge(stuck_after=self.stuck_after)))

    def metrics(self, _request: HttpRequest, exchange: Exchange) -> None:
        """GET /metrics, for Prometheus."""
        self.scrape.serve(exchange)

    def _judge(self, *, stuck_after: Seconds) -> Health:
        router = self.router
        return judge(
            [(view, router.state(view.replica)) for view in router.replicas],
            draining=self.router.draining,
            now=self.clock.now(),
            stuck_after=stuck_after,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEndpoints:
    """What is served, and its tokenizer."""

    model: ServedModel
    prompter: Prompter

    def models(self, _request: HttpRequest, exchange: Exchange) -> None:
        """GET /v1/models."""
        cards = [self._card(name) for name in self.model.names]
        exchange.reply(Response(200, msgspec.json.encode(ModelList(cards))))

    def one_model(self, request: HttpRequest, exchange: Exchange) -> None:
        """GET /v1/models/{id}."""
        name = self.model.resolve(unquote(request.head.path.removeprefix(MODELS_PATH)))
        exchange.reply(Response(200, msgspec.json.encode(self._card(name))))

    async def tokenize(self, request: HttpRequest, exchange: Exchange) -> None:
        """POST /tokenize."""
        body = _decode_tokenize(request.body)
        self.model.resolve(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("send either prompt or messages", param="prompt")
        if body.messages is not None:
            tokens = await self.prompter.chat(body.messages)
        else:
            tokens = await self.prompter.text(body.prompt or "")
        answer = Tokenized(len(tokens), self.model.context_length, list(tokens))
        exchange.reply(Response(200, msgspec.json.encode(answer)))

    async def detokenize(self, request: HttpRequest, exchange: Exchange) -> None:
        """POST /detokenize. Control tokens are written by their names."""
        body = _decode_detokenize(request.body)
        self.model.resolve(body.model)
        text = self.model.text.tokenizer.decode(body.tokens, skip_special=False)
        exchange.reply(Response(200, msgspec.json.encode(Detokenized(text))))

    def _card(self, name: str) -> ModelCard:
        return ModelCard(
            id=name, created=self.model.created, max_model_len=self.model.context_length
        )


def _state(health: Health) -> Response:
    return Response(200 if health.ok else 503, msgspec.json.encode(health))
