"""POST /v1/chat/completions and /v1/completions: from a body to a generation under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from msgspec import UNSET

from headrace.clock import unix_time
from headrace.errors import InvalidRequest
from headrace.server.gateway.answers import StreamedAnswer, WholeAnswer
from headrace.server.gateway.api.decoding import BodyDecoder
from headrace.server.gateway.api.requests import ChatCompletionRequest, CompletionRequest
from headrace.server.gateway.choice import Choice
from headrace.server.gateway.generation import Generation, Running
from headrace.server.gateway.keeping import keeping_of
from headrace.server.gateway.planning import Asked, build_requests, draft_for
from headrace.server.gateway.shapes import ChatShape, CompletionShape, Identity
from headrace.server.gateway.stops import StopMatcher
from headrace.server.gateway.tool_shape import ToolShape
from headrace.server.gateway.urgency import CLASS_FIELD, urgency_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Struct

    from headrace.clock import Clock
    from headrace.server.gateway.answers import Answer
    from headrace.server.gateway.api.requests import GenerationFields
    from headrace.server.gateway.book import Book
    from headrace.server.gateway.figures import Figures
    from headrace.server.gateway.generations import Generations
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.http.messages import HttpRequest, ResponseContext
    from headrace.server.gateway.model import ServedModel
    from headrace.server.gateway.prompting import Prompter, Threads
    from headrace.server.gateway.shapes import Shape
    from headrace.server.gateway.structured import Structures
    from headrace.types import Request, RequestId, Seconds, TokenId

T = TypeVar("T", bound="Struct")
Groups: TypeAlias = "list[tuple[Request, ...]]"

_SEED_BITS = 64

_decode_chat = BodyDecoder(ChatCompletionRequest)
_decode_completion = BodyDecoder(CompletionRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of one request."""

    large_body_bytes: int  # longer bodies are parsed in a thread
    request_timeout: Seconds
    max_retention: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """Both endpoints. They differ in how a prompt is made and in the shape of the answer."""

    model: ServedModel
    prompter: Prompter
    structures: Structures
    threads: Threads
    generations: Generations
    figures: Figures
    book: Book
    clock: Clock
    random_bits: Callable[[int], int]
    bounds: Bounds

    async def chat(self, request: HttpRequest, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        begun_at = self.clock.now()
        body = await self._decode(_decode_chat, request.body)
        name = self.model.resolve(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        structure = await self.structures.of_chat(body)
        asked = Asked(
            fields=body,
            max_tokens=_max_tokens(body),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            prompt_field="messages",
            urgency=urgency_of(body, request.head.headers, exchange.context.principal),
            constraint=structure.constraint,
            keeping=keeping_of(
                body, request.head.headers, body.messages, longest=self.bounds.max_retention
            ),
        )
        prompt = await self.prompter.chat(body.messages, structure.tools)
        groups = self._requests(asked, [prompt], exchange.context)
        chat = ChatShape(
            self._identity("chatcmpl", groups, name, asked),
            logprobs=asked.logprobs is not None,
            token_bytes=self.model.token_bytes,
            include_usage=_wants_usage(body),
        )
        shape = ToolShape(chat) if structure.tools else chat
        self._begin(exchange, asked, groups, shape, continues=False, begun_at=begun_at)

    async def complete(self, request: HttpRequest, exchange: Exchange) -> None:
        """POST /v1/completions."""
        begun_at = self.clock.now()
        body = await self._decode(_decode_completion, request.body)
        name = self.model.resolve(body.model)
        structure = await self.structures.of_fields(body)
        asked = Asked(
            fields=body,
            max_tokens=body.max_tokens,
            logprobs=body.logprobs,
            prompt_field="prompt",
            urgency=urgency_of(body, request.head.headers, exchange.context.principal),
            constraint=structure.constraint,
            keeping=keeping_of(body, request.head.headers, longest=self.bounds.max_retention),
        )
        prompts = await self.prompter.texts(body.prompt)
        groups = self._requests(asked, prompts, exchange.context)
        shape = CompletionShape(
            self._identity("cmpl", groups, name, asked),
            logprobs=asked.logprobs is not None,
            token_bytes=self.model.token_bytes,
            include_usage=_wants_usage(body),
        )
        self._begin(exchange, asked, groups, shape, continues=True, begun_at=begun_at)

    async def _decode(self, decoder: BodyDecoder[T], body: bytearray) -> T:
        if len(body) <= self.bounds.large_body_bytes:
            return decoder(body)
        return await self.threads.run(lambda: decoder(body))

    def _requests(
        self, asked: Asked, prompts: list[tuple[TokenId, ...]], context: ResponseContext
    ) -> Groups:
        timeout = self.bounds.request_timeout
        draft = draft_for(
            context.principal,
            asked.urgency,
            id=context.request_id,
            seed=self.random_bits(_SEED_BITS),
            arrived_at=context.arrived_at,
            timeout=min(timeout, asked.fields.timeout or timeout),
        )
        salt = asked.fields.cache_salt
        groups = build_requests(asked, prompts, draft, self.model.facts())
        return [self.model.replicas.name_blocks(group, salt) for group in groups]

    def _identity(self, prefix: str, groups: Groups, name: str, asked: Asked) -> Identity:
        request_id = groups[0][0].id.partition("#")[0]
        tier = UNSET if asked.fields.service_tier is None else asked.urgency.tier.value
        return Identity(f"{prefix}-{request_id}", unix_time(), name, tier)

    def _begin(
        self,
        exchange: Exchange,
        asked: Asked,
        groups: Groups,
        shape: Shape,
        *,
        continues: bool,
        begun_at: Seconds,
    ) -> None:
        fields, context, priority = asked.fields, exchange.context, asked.urgency.priority
        context.headers.append((CLASS_FIELD, priority.value.encode()))
        running = self._running(fields, groups, continues=continues)
        answer: Answer
        if fields.stream:
            answer = StreamedAnswer(exchange, shape, include_usage=_wants_usage(fields))
        else:
            answer = WholeAnswer(exchange, shape, num_choices=len(running))
        prompt_tokens = sum(len(group[0].prompt) for group in groups)
        generation = Generation(
            running=running,
            record=self.book.open(
                context,
                urgency=asked.urgency,
                begun_at=begun_at,
                prompt_tokens=prompt_tokens,
            ),
            answer=answer,
            figures=self.figures,
            release=self.generations.release,
            ended=self.book.close,
        )
        exchange.on_gone = lambda: generation.gone(self.clock.now())
        self.figures.accepted(len(running), prompt_tokens)
        self.generations.begin(generation, groups)

    def _running(
        self, fields: GenerationFields, groups: Groups, *, continues: bool
    ) -> dict[RequestId, Running]:
        stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
        running: dict[RequestId, Running] = {}
        for group in groups:
            for request in group:
                is_exact = continues or request.constraint is not None  # to the first blank
                choice = Choice(
                    index=len(running),
                    decoder=self.model.detokenizer(continues=is_exact),
                    stops=StopMatcher(stops) if stops else None,
                    stop_token_ids=frozenset(request.stop_token_ids),
                    min_tokens=request.min_tokens,
                )
                running[request.id] = Running(choice, counts_prompt=request is group[0])
        return running


def _max_tokens(body: ChatCompletionRequest) -> int | None:
    if body.max_completion_tokens is None:
        return body.max_tokens
    if body.max_tokens not in (None, body.max_completion_tokens):
        raise InvalidRequest(
            "max_tokens and max_completion_tokens differ; send one", param="max_tokens"
        )
    return body.max_completion_tokens


def _wants_usage(fields: GenerationFields) -> bool:
    if fields.stream_options is None:
        return False
    if not fields.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    return bool(fields.stream_options.include_usage)
