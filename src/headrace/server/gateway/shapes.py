"""How a generation looks as JSON: chat or legacy completions, in chunks or whole.

Chunks are what costs: everything but the text is encoded once per stream and choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from headrace.server.gateway.api.responses import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptDetails,
    StreamHead,
    TokenLogprob,
    TopLogprob,
    UsageBody,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.server.gateway.choice import PlacedLogprobs
    from headrace.types import FinishReason, TokenId, Usage

LOWEST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI writes this number

_encode = msgspec.json.encode
_DATA = b"data: "
_END = b"\n\n"


class WholeChoice(NamedTuple):
    """A finished choice; its index is its place."""

    text: str
    logprobs: Sequence[PlacedLogprobs]
    finish: FinishReason


class Shape(Protocol):
    """One kind of answer to one request. Chunks are whole server-sent events."""

    def first(self, index: int) -> bytes:
        """What a choice's stream begins with."""
        ...

    def text(self, index: int, text: str, logprobs: Sequence[PlacedLogprobs]) -> bytes:
        """A piece of text."""
        ...

    def finish(self, index: int, finish: FinishReason) -> bytes:
        """The end of a choice."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The last chunk, where it was asked for."""
        ...

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """An answer that is no stream."""
        ...


class Identity(NamedTuple):
    """What every chunk of an answer repeats."""

    id: str
    created: int  # Unix time, whole seconds
    model: str
    service_tier: str | UnsetType = UNSET


class ChatShape:
    """/v1/chat/completions."""

    def __init__(
        self,
        identity: Identity,
        *,
        logprobs: bool,
        token_bytes: Callable[[TokenId], bytes],
        include_usage: bool,
    ) -> None:
        self.identity = identity
        self._logprobs = logprobs
        self._token_bytes = token_bytes
        self._chunks = _Chunks(identity, "chat.completion.chunk", include_usage=include_usage)

    def first(self, index: int) -> bytes:
        """The role."""
        return self._chunks.other(index, b'"delta":{"role":"assistant","content":""}', b"null")

    def text(self, index: int, text: str, logprobs: Sequence[PlacedLogprobs]) -> bytes:
        """A delta of content."""
        if not logprobs:
            return self._chunks.plain(index, b'"delta":{"content":', text, b"}")
        return self._chunks.other(
            index, b'"delta":{"content":%b}' % _encode(text), b"null", _encode(self._told(logprobs))
        )

    def finish(self, index: int, finish: FinishReason) -> bytes:
        """An empty delta with the reason."""
        return self.end(index, finish.value)

    def end(self, index: int, reason: str) -> bytes:
        """An empty delta with a reason that only chats have."""
        return self._chunks.other(index, b'"delta":{}', _encode(reason))

    def delta(self, index: int, delta: bytes, logprobs: Sequence[PlacedLogprobs] = ()) -> bytes:
        """Any delta."""
        told = _encode(self._told(logprobs)) if logprobs else b"null"
        return self._chunks.other(index, b'"delta":' + delta, b"null", told)

    def usage(self, usage: Usage) -> bytes:
        """No choices, usage."""
        return self._chunks.usage(usage)

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """A chat.completion."""
        return self.body(
            [
                ChatChoice(
                    index,
                    ChatMessage(choice.text),
                    self.logprobs_of(choice),
                    choice.finish.value,
                )
                for index, choice in enumerate(choices)
            ],
            usage,
        )

    def body(self, choices: list[ChatChoice], usage: Usage) -> bytes:
        """A chat.completion of any choices."""
        return _encode(
            ChatCompletion(
                id=self.identity.id,
                created=self.identity.created,
                model=self.identity.model,
                service_tier=self.identity.service_tier,
                choices=choices,
                usage=usage_body(usage),
            )
        )

    def logprobs_of(self, choice: WholeChoice) -> ChatLogprobs | None:
        """Return a finished choice's, None if nobody wants them."""
        return self._told(choice.logprobs) if self._logprobs else None

    def _told(self, placed: Sequence[PlacedLogprobs]) -> ChatLogprobs:
        content = []
        for _, entry in placed:
            top = [TopLogprob(*self._named(token, value)) for token, value in entry.top]
            content.append(TokenLogprob(*self._named(entry.token, entry.logprob), top))
        return ChatLogprobs(content)

    def _named(self, token: TokenId, logprob: float) -> tuple[str, float, list[int]]:
        piece = self._token_bytes(token)
        return piece.decode(errors="replace"), max(logprob, LOWEST_LOGPROB), list(piece)


class CompletionShape:
    """/v1/completions."""

    def __init__(
        self,
        identity: Identity,
        *,
        logprobs: bool,
        token_bytes: Callable[[TokenId], bytes],
        include_usage: bool,
    ) -> None:
        self._identity = identity
        self._logprobs = logprobs
        self._token_bytes = token_bytes
        self._chunks = _Chunks(identity, "text_completion", include_usage=include_usage)

    def first(self, index: int) -> bytes:
        """Nothing: there are no roles."""
        return b""

    def text(self, index: int, text: str, logprobs: Sequence[PlacedLogprobs]) -> bytes:
        """A piece of text."""
        if not logprobs:
            return self._chunks.plain(index, b'"text":', text, b"")
        return self._chunks.other(
            index, b'"text":' + _encode(text), b"null", _encode(self._told(logprobs))
        )

    def finish(self, index: int, finish: FinishReason) -> bytes:
        """No text, the reason."""
        return self._chunks.other(index, b'"text":""', _encode(finish))

    def usage(self, usage: Usage) -> bytes:
        """No choices, usage."""
        return self._chunks.usage(usage)

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """A text_completion."""
        return _encode(
            Completion(
                id=self._identity.id,
                created=self._identity.created,
                model=self._identity.model,
                service_tier=self._identity.service_tier,
                choices=[
                    CompletionChoice(
                        index,
                        choice.text,
                        self._told(choice.logprobs) if self._logprobs else None,
                        choice.finish.value,
                    )
                    for index, choice in enumerate(choices)
                ],
                usage=usage_body(usage),
            )
        )

    def _told(self, placed: Sequence[PlacedLogprobs]) -> CompletionLogprobs:
        entries = [entry for _, entry in placed]
        return CompletionLogprobs(
            tokens=[self._name(entry.token) for entry in entries],
            token_logprobs=[max(entry.logprob, LOWEST_LOGPROB) for entry in entries],
            top_logprobs=[
                {
                    self._name(token): max(value, LOWEST_LOGPROB)
                    for token, value in (*entry.top, (entry.token, entry.logprob))
                }
                for entry in entries
            ],
            text_offset=[offset for offset, _ in placed],
        )

    def _name(self, token: TokenId) -> str:
        return self._token_bytes(token).decode(errors="replace")


def usage_body(usage: Usage) -> UsageBody:
    """Return usage as clients read it."""
    return UsageBody(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptDetails(usage.cached_tokens),
    )


class _Chunks:
    """Server-sent events with everything but the text encoded in advance."""

    def __init__(self, identity: Identity, kind: str, *, include_usage: bool) -> None:
        self._head = StreamHead(
            id=identity.id,
            object=kind,
            created=identity.created,
            model=identity.model,
            service_tier=identity.service_tier,
        )
        self._opened = _DATA + _encode(self._head)[:-1] + b',"choices":[{"index":'
        self._closed = b'],"usage":null}' + _END if include_usage else b"]}" + _END
        self._before: dict[int, bytes] = {}

    def plain(self, index: int, opening: bytes, text: str, closing: bytes) -> bytes:
        """The usual chunk; for one stream ``opening`` and ``closing`` are always the same."""
        before = self._before.get(index)
        if before is None:
            before = self._before[index] = self._opened + b"%d," % index + opening
        return b"".join(
            (
                before,
                _encode(text),
                closing,
                b',"logprobs":null,"finish_reason":null}',
                self._closed,
            )
        )

    def other(self, index: int, content: bytes, finish: bytes, logprobs: bytes = b"null") -> bytes:
        """Any chunk with one choice."""
        return b"".join(
            (
                self._opened,
                b"%d," % index,
                content,
                b',"logprobs":',
                logprobs,
                b',"finish_reason":',
                finish,
                b"}",
                self._closed,
            )
        )

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices."""
        head = msgspec.structs.replace(self._head, choices=[], usage=usage_body(usage))
        return _DATA + _encode(head) + _END
