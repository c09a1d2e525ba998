"""Prompts for servers that publish what they have cached, named by their tokens.

The tokenizer and template are those of the server's model, so that the digests of a prompt's
blocks are those of the blocks that it publishes. It is for finding the prompt in the index only:
what cannot be named (images, a template that refuses, too long a body) goes where there is room,
and is the server's to judge.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import msgspec
from msgspec import Struct

from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.foreign_blocks import foreign_root
from headrace.errors import InvalidRequest, RequestError
from headrace.monitoring import table
from headrace.server.gateway.api.requests import Message, PromptItem
from headrace.server.gateway.foreign.naming import Named
from headrace.server.gateway.prompting import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.model.chat_template import Message as TemplateMessage
    from headrace.model.server_words import ServerWords
    from headrace.monitoring.metrics import Registry
    from headrace.server.gateway.prompting import Threads
    from headrace.types import TokenId, Tokens

MAX_NAMED_BYTES = 4 << 20
"""Of a body. Longer ones are not named: they fit no context that is in use."""


class _Asked(Struct):
    messages: list[Message] | None = None
    prompt: str | list[PromptItem] | None = None
    tools: list[dict[str, object]] | None = None
    cache_salt: str | None = None


_decode = msgspec.json.Decoder(_Asked).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Which tokens the servers of a model make of prompts: ``unit`` of them are a key."""

    words: ServerWords
    unit: Tokens

    def name(self, body: bytes | bytearray) -> Named | None:
        """Return the name of the prompt in a request's body, None if it has none."""
        if len(body) > MAX_NAMED_BYTES:
            return None
        try:
            asked = _decode(body)
            tokens = self._tokens(asked)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvalidRequest):
            return None
        root = foreign_root(self.unit, asked.cache_salt or "")
        try:
            return Named(root, prompt_chain(root, tokens, self.unit), len(tokens))
        except ValueError:  # a number that is no token
            return None

    def _tokens(self, asked: _Asked) -> Sequence[TokenId]:
        if asked.messages is not None:
            turns = [turn(message, place) for place, message in enumerate(asked.messages)]
            return self.words.chat(turns, cast("list[TemplateMessage]", asked.tools or []))
        if isinstance(asked.prompt, str):
            return self.words.text(asked.prompt)
        first = asked.prompt[0] if asked.prompt else None
        match first:  # of several prompts the first leads the way
            case str():
                return self.words.text(first)
            case int():
                return [token for token in asked.prompt or [] if isinstance(token, int)]
            case list():
                return first
            case None:
                raise InvalidRequest("there is no prompt")


class TokenNames:
    """Names the prompts of one model, long ones in a thread."""

    def __init__(
        self,
        model: str,
        naming: Naming,
        *,
        threads: Threads,
        inline_bytes: int,
        registry: Registry,
    ) -> None:
        self.unit = naming.unit
        self._model = model
        self._naming = naming
        self._threads = threads
        self._inline_bytes = inline_bytes
        self._registry = registry
        self._tasks: set[asyncio.Task[None]] = set()

    def name(self, body: bytes | bytearray, then: Callable[[Named | None], None]) -> None:
        """Call ``then`` with the prompt's name, at once for short ones; it must not raise."""
        if len(body) <= self._inline_bytes:
            self._done(self._naming.name(body), then)
            return
        task = asyncio.get_running_loop().create_task(self._name(body, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Name nothing more; whoever waits is not called."""
        for task in self._tasks:
            task.cancel()

    async def _name(self, body: bytes | bytearray, then: Callable[[Named | None], None]) -> None:
        try:
            named = await self._threads.run(lambda: self._naming.name(body))
        except RequestError:  # too many wait: it is not worth more waiting
            named = None
        self._done(named, then)

    def _done(self, named: Named | None, then: Callable[[Named | None], None]) -> None:
        outcome = "unnamed" if named is None else "named"
        self._registry.add(table.KV_NAMED_PROMPTS, self._model, outcome)
        then(named)
