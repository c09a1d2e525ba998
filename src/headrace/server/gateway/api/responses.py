"""What clients get, as structs. Source: OpenAI's API reference."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class PromptDetails(Struct, frozen=True):
    """Of the prompt tokens, those found in a prefix cache."""

    cached_tokens: int


class UsageBody(Struct, frozen=True):
    """What is billed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(Struct, frozen=True):
    """An alternative at one position. ``bytes`` are the token's, ``token`` their nearest text."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    """The token at one position."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Log-probabilities of a chat choice, or of a part of it."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct, frozen=True):
    """The same for legacy completions, in columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class FunctionCallBody(Struct, frozen=True):
    """Which function, with which arguments, as JSON; in a stream in pieces."""

    name: str | UnsetType
    arguments: str


class ToolCallBody(Struct, frozen=True, kw_only=True):
    """A call that the model makes. ``index`` only in streams, the rest of the head only once."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCallBody


class ChatMessage(Struct, frozen=True):
    """A whole answer."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    tool_calls: list[ToolCallBody] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One of the n answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    service_tier: str | UnsetType = UNSET


class CompletionChoice(Struct, frozen=True):
    """One of the n texts of one of the prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str


class Completion(Struct, frozen=True, kw_only=True):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody
    service_tier: str | UnsetType = UNSET


class StreamHead(Struct, frozen=True, kw_only=True):
    """What all chunks of one stream begin with; the usage chunk is one with no choices."""

    id: str
    object: str
    created: int
    model: str
    service_tier: str | UnsetType = UNSET
    choices: list[None] | UnsetType = UNSET
    usage: UsageBody | UnsetType = UNSET


class ModelCard(Struct, frozen=True, kw_only=True):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "headrace"
    max_model_len: int


class ModelList(Struct, frozen=True):
    """The answer of /v1/models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class Tokenized(Struct, frozen=True):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(Struct, frozen=True):
    """The answer of /detokenize."""

    prompt: str
