"""What clients may send: every field with its range, once.

Fields follow OpenAI's API reference (chat and legacy completions) and vLLM's extra sampling
parameters. ``null`` means the default. Fields that are not here are ignored, unless they stand in
refusals.py.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Raw, Struct

from headrace.types import PriorityClass

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_MESSAGES = 4096
MAX_MILLISECONDS = 86_400_000
_MAX_TOKENS = (1 << 31) - 1

TokenNumber = Annotated[int, Meta(ge=0, le=_MAX_TOKENS)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Limit = Annotated[int, Meta(ge=1, le=_MAX_TOKENS)]
Milliseconds = Annotated[float, Meta(gt=0, le=MAX_MILLISECONDS)]


class ServiceTier(StrEnum):
    """OpenAI's words for the class of a request. ``auto`` leaves it to the server."""

    AUTO = "auto"
    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"


class StreamOptions(Struct, frozen=True):
    """How a stream ends."""

    include_usage: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """Only ``text``, until structured output is there."""

    type: str


class UrgencyFields(Struct, frozen=True, kw_only=True):
    """What is asked of time: a class, in OpenAI's words or ours, and targets (urgency.py)."""

    service_tier: ServiceTier | None = None
    priority_class: PriorityClass | None = None
    ttft_ms: Milliseconds | None = None  # to the first token
    itl_ms: Milliseconds | None = None  # between two tokens, on average
    deadline_ms: Milliseconds | None = None  # to the last token; then it is given up


class GenerationFields(UrgencyFields, frozen=True, kw_only=True):
    """What both kinds of completions share."""

    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    max_tokens: Limit | None = None
    min_tokens: TokenNumber | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_MAX_TOKENS)] | None = None  # 0 and -1: off
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[TokenNumber, Bias], Meta(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenNumber], Meta(max_length=256)] | None = None
    cache_salt: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")] | None = None
    response_format: ResponseFormat | None = None
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None  # seconds


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """Part of a message's content."""

    text: str


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Meta(min_length=1, max_length=1024)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: list[Raw] | None = None


class ChatCompletionRequest(GenerationFields, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


PromptItem: TypeAlias = str | TokenNumber | list[TokenNumber]


class CompletionRequest(GenerationFields, frozen=True, kw_only=True):
    """POST /v1/completions. ``prompt``: a text, texts, tokens, or lists of tokens."""

    prompt: str | Annotated[list[PromptItem], Meta(min_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """POST /tokenize: a text as a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[TokenNumber]
