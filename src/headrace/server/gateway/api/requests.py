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
MAX_TOOLS = 128
MAX_SESSION_CHARS = 256
_MAX_TOKENS = (1 << 31) - 1

TokenNumber = Annotated[int, Meta(ge=0, le=_MAX_TOKENS)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Limit = Annotated[int, Meta(ge=1, le=_MAX_TOKENS)]
Milliseconds = Annotated[float, Meta(gt=0, le=MAX_MILLISECONDS)]
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]


class ServiceTier(StrEnum):
    """OpenAI's words for the class of a request. ``auto`` leaves it to the server."""

    AUTO = "auto"
    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"


ABSENT = Raw()
"""JSON that was not sent. msgspec cannot say ``Raw | None``."""


class StreamOptions(Struct, frozen=True):
    """How a stream ends."""

    include_usage: bool | None = None


def given(raw: Raw) -> bytes | None:
    """Return JSON that was sent, None if nothing was, or null."""
    content = bytes(raw)
    return None if content in (b"", b"null") else content


class JsonSchema(Struct, frozen=True):
    """A schema that the output must match. It always must: ``strict`` changes nothing."""

    schema: Raw
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """What the output must be, in OpenAI's words."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the output must be, in vLLM's words: one of these. ``grammar`` is Lark or GBNF."""

    json: Raw = ABSENT
    json_object: bool | None = None
    regex: Annotated[str, Meta(min_length=1)] | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=4096)] | None = None
    grammar: Annotated[str, Meta(min_length=1)] | None = None


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
    prompt_cache_key: Annotated[str, Meta(min_length=1, max_length=MAX_SESSION_CHARS)] | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Raw = ABSENT
    guided_regex: Annotated[str, Meta(min_length=1)] | None = None
    guided_choice: Annotated[list[str], Meta(min_length=1, max_length=4096)] | None = None
    guided_grammar: Annotated[str, Meta(min_length=1)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None  # seconds


class CacheControl(Struct, frozen=True):
    """Keep the prompt's content, for five minutes if nothing is said."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """Part of a message's content."""

    text: str
    cache_control: CacheControl | None = None


class CalledFunction(Struct, frozen=True):
    """``arguments`` are JSON."""

    name: FunctionName
    arguments: str


class ToolCall(Struct, frozen=True, tag_field="type", tag="function"):
    """A call that the model has made."""

    function: CalledFunction
    id: Annotated[str, Meta(max_length=256)] | None = None


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Meta(min_length=1, max_length=1024)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None


class Function(Struct, frozen=True):
    """A function that the model may call. ``parameters`` is a schema; no parameters without it."""

    name: FunctionName
    description: str | None = None
    parameters: Raw = ABSENT
    strict: bool | None = None  # arguments always match


class Tool(Struct, frozen=True, tag_field="type", tag="function"):
    """The only kind of tools there is here."""

    function: Function


class FunctionReference(Struct, frozen=True):
    """One of the functions, by name."""

    name: FunctionName


class ToolReference(Struct, frozen=True, tag_field="type", tag="function"):
    """The tool that must be called."""

    function: FunctionReference


class ChatCompletionRequest(GenerationFields, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolReference | None = None
    parallel_tool_calls: bool | None = None
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
