"""Prompts to tokens: templates, tokenisation, and their cost kept off the event loop.

The tokenizer's batch call releases the GIL, so that a long text in a thread leaves the loop free.
A text that cannot fit the context by its length in bytes is refused before anything is computed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from headrace.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from headrace.server.gateway.api.requests import MAX_PROMPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from headrace.model.chat_template import Json
    from headrace.model.text import TextModel
    from headrace.server.gateway.api.requests import Message, PromptItem, ToolCall
    from headrace.types import TokenId, Tokens

T = TypeVar("T")

_BYTES_PER_TURN = 64  # what rendering a short message costs, in bytes to tokenise


class Threads:
    """A bounded way into a thread pool."""

    def __init__(self, pool: Executor, *, max_waiting: int) -> None:
        self._pool = pool
        self._max_waiting = max_waiting
        self._num_waiting = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Return ``work()``, computed in a thread. Raises Overloaded when too many wait."""
        if self._num_waiting >= self._max_waiting:
            raise Overloaded(f"{self._num_waiting} requests wait for a thread")
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._num_waiting -= 1


class Prompter:
    """Makes prompts of one model."""

    def __init__(
        self, text: TextModel, threads: Threads, *, context_length: Tokens, inline_bytes: int
    ) -> None:
        self._text = text
        self._threads = threads
        self._inline_bytes = inline_bytes
        tokenizer = text.tokenizer
        longest = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
        self._max_bytes = context_length * longest

    async def chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Json]] = ()
    ) -> tuple[TokenId, ...]:
        """Return the prompt of a chat; ``tools`` as templates take them. Raises InvalidRequest."""
        turns = [turn(message, place) for place, message in enumerate(messages)]
        num_bytes = sum(_num_bytes(message) for message in messages)
        if tools:
            num_bytes += len(msgspec.json.encode(tools))
        self._check_size(num_bytes, "messages")
        (prompt,) = await self._encode(
            num_bytes + len(turns) * _BYTES_PER_TURN,
            lambda: [self._text.encode_chat(turns, tools=tools)],
        )
        return prompt

    async def text(self, prompt: str) -> tuple[TokenId, ...]:
        """Return the prompt of a text. Raises InvalidRequest."""
        (tokens,) = await self._encode_texts([prompt])
        return tokens

    async def texts(self, prompt: str | Sequence[PromptItem]) -> list[tuple[TokenId, ...]]:
        """Return the prompts of a completion request. Raises InvalidRequest."""
        if isinstance(prompt, str):
            return await self._encode_texts([prompt])
        texts = [item for item in prompt if isinstance(item, str)]
        lists = [self._checked(item) for item in prompt if isinstance(item, list)]
        tokens = [item for item in prompt if isinstance(item, int)]
        if len(prompt) not in (len(texts), len(lists), len(tokens)):
            raise InvalidRequest(
                "prompt mixes texts, tokens and lists of tokens; send one kind", param="prompt"
            )
        if tokens:
            return [self._checked(tokens)]
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequest(f"prompt is a list of more than {MAX_PROMPTS}", param="prompt")
        return lists or await self._encode_texts(texts)

    async def _encode_texts(self, texts: list[str]) -> list[tuple[TokenId, ...]]:
        sizes = [len(text.encode()) for text in texts]
        self._check_size(max(sizes), "prompt")
        encode = self._text.encode_prompt
        return await self._encode(sum(sizes), lambda: [encode(text) for text in texts])

    async def _encode(
        self, num_bytes: int, work: Callable[[], list[list[TokenId]]]
    ) -> list[tuple[TokenId, ...]]:
        encoded = work() if num_bytes <= self._inline_bytes else await self._threads.run(work)
        return [tuple(tokens) for tokens in encoded]

    def _check_size(self, num_bytes: int, param: str) -> None:
        if num_bytes > self._max_bytes:
            raise ContextLengthExceeded(
                f"the prompt has {num_bytes} bytes; at most {self._max_bytes} can fit the model's "
                "context, whatever they are; shorten the prompt",
                param=param,
            )

    def _checked(self, tokens: Sequence[TokenId]) -> tuple[TokenId, ...]:
        vocab_size = self._text.tokenizer.vocab_size
        worst = max(tokens, default=0)
        if worst >= vocab_size:
            raise InvalidRequest(
                f"prompt: token {worst} is not below {vocab_size}, the number of tokens",
                param="prompt",
            )
        return tuple(tokens)


def turn(message: Message, place: int) -> dict[str, Json]:
    """Return a message as templates take it."""
    is_call = message.role == "assistant" and message.tool_calls
    if message.tool_calls and not is_call:
        raise InvalidRequest(
            "only the assistant calls tools", param=f"messages[{place}].tool_calls"
        )
    content = _content(message)
    if content is None and not is_call:
        raise InvalidRequest("a message needs content", param=f"messages[{place}].content")
    role = "system" if message.role == "developer" else message.role  # the same, renamed
    turn: dict[str, Json] = {"role": role, "content": content or ""}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            _call(call, f"messages[{place}].tool_calls[{number}].function.arguments")
            for number, call in enumerate(message.tool_calls)
        ]
    return turn


def _content(message: Message) -> str | None:
    if message.content is None or isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content)


def _num_bytes(message: Message) -> int:
    """Return what a message weighs, before it is rendered."""
    calls = message.tool_calls or ()
    arguments = sum(len(call.function.arguments.encode()) for call in calls)
    return arguments + len((_content(message) or "").encode())


def _call(call: ToolCall, param: str) -> Json:
    """Return a call as templates take it: its arguments as an object."""
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
        raise InvalidRequest("arguments are no JSON object", param=param) from None
    name = call.function.name
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": name, "arguments": cast("Json", arguments)},
    }
