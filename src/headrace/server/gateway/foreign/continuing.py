"""The request with which another replica goes on, and its events as part of the first stream.

By text: a completion's prompt with the text so far behind it, or a chat with the text so far as
the assistant's message, which the server is told to go on with (``continue_final_message``, known
to vLLM, SGLang and llama.cpp). By token ids: a completion of prompt and output ids, for chats too
(vLLM). Servers draw from the start of their random numbers again: only greedy streams are what
they would have been. Grammars and tool calls would begin anew in the middle, so such streams do
not go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import msgspec
from msgspec import Struct

from headrace.server.gateway.foreign.answers import Billing
from headrace.server.gateway.foreign.config import Migration
from headrace.server.gateway.foreign.editing import append_item, set_fields, text_of
from headrace.server.gateway.foreign.resuming import CannotResume, event_data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.server.gateway.foreign.cards import ModelCard
    from headrace.server.gateway.foreign.resuming import Sent

CHAT_PATH = "/v1/chat/completions"
COMPLETE_PATH = "/v1/completions"

_Json: TypeAlias = "dict[str, object]"
_SHORTEST_ECHO = 24  # characters: longer than a token, so that it is none that comes next
_DONE = b"data: [DONE]\n\n"
_NOTHING = (b"", b"null", b"false", b"[]", b"{}")
_Raw = msgspec.Raw


class _Form(Struct, frozen=True):
    type: str = "text"


class _Asked(Struct, frozen=True):
    """What decides whether and how a request can be asked in the middle."""

    model: str | None = None
    messages: _Raw = _Raw()
    prompt: _Raw = _Raw()
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    logprobs: _Raw = _Raw()
    echo: _Raw = _Raw()
    suffix: _Raw = _Raw()
    best_of: int | None = None
    tools: _Raw = _Raw()
    functions: _Raw = _Raw()
    response_format: _Form | None = None
    structured_outputs: _Raw = _Raw()
    guided_json: _Raw = _Raw()
    guided_regex: _Raw = _Raw()
    guided_choice: _Raw = _Raw()
    guided_grammar: _Raw = _Raw()
    regex: _Raw = _Raw()
    ebnf: _Raw = _Raw()
    grammar: _Raw = _Raw()
    json_schema: _Raw = _Raw()
    continue_final_message: _Raw = _Raw()


_UNFIT = (
    *("echo", "suffix", "tools", "functions", "structured_outputs", "guided_json", "guided_regex"),
    *("guided_choice", "guided_grammar", "regex", "ebnf", "grammar", "json_schema"),
    "continue_final_message",
)
_decode_asked = msgspec.json.Decoder(_Asked).decode


class Teller(Protocol):
    """How the events of an attempt are told to the client."""

    def take(self, events: bytes) -> bytes:
        """Return what the client gets for these whole events."""
        ...

    def billing(self, billing: Billing | None) -> Billing | None:
        """Return what the whole stream bills, for what the attempt does."""
        ...


class Resumption(NamedTuple):
    """How a stream goes on at one replica."""

    path: str
    body: bytes | bytearray
    teller: Teller


def check(body: bytes | bytearray) -> _Asked:
    """Return what was asked. Raises CannotResume if nobody could go on with it."""
    try:
        asked = _decode_asked(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CannotResume(f"its request is of an unknown form: {str(error)[:200]}") from None
    for name in _UNFIT:
        if bytes(getattr(asked, name)) not in _NOTHING:
            raise CannotResume(f"it asks for {name}")
    if (asked.n or 1) > 1 or (asked.best_of or 1) > 1:
        raise CannotResume("it asks for several choices")
    if asked.response_format is not None and asked.response_format.type != "text":
        raise CannotResume("it asks for response_format")
    return asked


def resume(
    path: str, body: bytes | bytearray, sent: Sent, model: ModelCard, migration: Migration
) -> Resumption:
    """Return how to ask ``model`` to go on. Raises CannotResume."""
    asked = check(body)
    is_chat = path == CHAT_PATH
    fields = _limits(asked, sent)
    retelling = Retelling(sent, is_chat=is_chat)
    if migration is Migration.EXACT:
        fields |= _by_ids(asked, sent, model, is_chat=is_chat)
        path = COMPLETE_PATH
    elif is_chat:
        text = sent.text.rstrip()
        fields = fields | _by_message(asked, text, model) if text else {}
        retelling.overlap = sent.text[len(text) :]
        retelling.echo = text if model.server.may_echo else ""
    else:
        fields["prompt"] = _longer_prompt(asked, sent)
    if asked.model not in (None, model.id):
        fields["model"] = msgspec.json.encode(model.id)
    return Resumption(path=path, body=set_fields(body, fields), teller=retelling)


def _limits(asked: _Asked, sent: Sent) -> dict[str, bytes]:
    fields: dict[str, bytes] = {}
    for name, limit in (
        ("max_tokens", asked.max_tokens),
        ("max_completion_tokens", asked.max_completion_tokens),
    ):
        if limit is None:
            continue
        if limit <= sent.num_tokens:
            raise CannotResume("all its tokens were sent, only its end is missing")
        fields[name] = b"%d" % (limit - sent.num_tokens)
    if asked.min_tokens:
        fields["min_tokens"] = b"%d" % max(0, asked.min_tokens - sent.num_tokens)
    return fields


def _by_message(asked: _Asked, text: str, model: ModelCard) -> dict[str, bytes]:
    if not model.server.continues_chats:
        raise CannotResume(f"{model.id} is served by one that cannot go on with a chat")
    message = msgspec.json.encode({"role": "assistant", "content": text})
    return {
        "messages": append_item(bytes(asked.messages), message),
        "continue_final_message": b"true",
        "add_generation_prompt": b"false",
    }


def _longer_prompt(asked: _Asked, sent: Sent) -> bytes:
    prompt = bytes(asked.prompt).strip()
    if text_of(prompt) is None:
        raise CannotResume("its prompt is not one text")
    return prompt[:-1] + msgspec.json.encode(sent.text)[1:]


def _by_ids(asked: _Asked, sent: Sent, model: ModelCard, *, is_chat: bool) -> dict[str, bytes]:
    if not model.server.tells_token_ids:
        raise CannotResume(f"{model.id} is served by one that takes no token ids")
    if not sent.has_all_ids or not sent.prompt_ids:
        raise CannotResume("not all its token ids were told")
    if is_chat and bytes(asked.logprobs) not in _NOTHING:
        raise CannotResume("it asks for logprobs of a chat")
    ids = [*sent.prompt_ids, *sent.token_ids]
    fields = {"prompt": msgspec.json.encode(ids)}
    if not is_chat:
        return fields
    limit = asked.max_completion_tokens or asked.max_tokens
    left = (model.max_model_len or 0) - len(ids) if limit is None else limit - sent.num_tokens
    if left <= 0:
        raise CannotResume("it is not known how long it may become")
    return {**fields, "max_tokens": b"%d" % left, "max_completion_tokens": b"null"}


class Verbatim:
    """The Teller of a first attempt: its events are told as they are."""

    def take(self, events: bytes) -> bytes:
        """See Teller."""
        return events

    def billing(self, billing: Billing | None) -> Billing | None:
        """See Teller."""
        return billing


class Retelling:
    """The Teller of a continuation: events in the first stream's form, with its id and usage.

    Of the beginning of its text, ``overlap`` is left out as far as it is there: white space at the
    end of a message, which templates drop and the model then says again. So is ``echo``, the
    message itself, which some servers say again in one piece before they go on.
    """

    def __init__(self, sent: Sent, *, is_chat: bool) -> None:
        self.overlap = ""
        self.echo = ""
        self._is_chat = is_chat
        self._num_tokens = sent.num_tokens
        head = {"id": sent.id, "created": sent.created, "model": sent.model}
        self._head = {name: value for name, value in head.items() if value is not None}
        self._head["object"] = "chat.completion.chunk" if is_chat else "text_completion"

    def take(self, events: bytes) -> bytes:
        """See Teller."""
        told = [self._retell(data) for data in event_data(events)]
        if b"[DONE]" in events and events.rstrip().endswith(b"[DONE]"):
            told.append(_DONE)
        return b"".join(told)

    def billing(self, billing: Billing | None) -> Billing | None:
        """See Teller."""
        if billing is None:
            return None
        return Billing(
            max(0, billing.prompt_tokens - self._num_tokens),
            billing.output_tokens + self._num_tokens,
            billing.cached_tokens,
        )

    def _retell(self, data: bytes) -> bytes:
        event: _Json = msgspec.json.decode(data)
        if "error" not in event:
            event = {**event, **self._head}
            event.pop("prompt_token_ids", None)
            usage, choices = event.get("usage"), event.get("choices")
            if isinstance(usage, dict):
                event["usage"] = self._whole_usage(usage)
            if isinstance(choices, list):
                told = [self._choice(each) for each in choices if isinstance(each, dict)]
                event["choices"] = [choice for choice in told if choice is not None]
                if choices and not event["choices"]:
                    return b""
        return b"data: " + msgspec.json.encode(event) + b"\n\n"

    def _whole_usage(self, usage: Mapping[str, object]) -> _Json:
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt, int) or not isinstance(output, int):
            return dict(usage)
        return {
            **usage,
            "prompt_tokens": max(0, prompt - self._num_tokens),
            "completion_tokens": output + self._num_tokens,
        }

    def _choice(self, choice: _Json) -> _Json | None:
        """Return what the client gets of a choice, None if there is nothing in it for it."""
        choice.pop("prompt_token_ids", None)
        delta = choice.pop("delta", None)
        said: _Json = delta if isinstance(delta, dict) else {}
        text = said.pop("content", None) if delta is not None else choice.pop("text", None)
        text = self._without_overlap(text) if isinstance(text, str) else ""
        said.pop("role", None)
        has_end = choice.get("finish_reason") is not None
        if not (text or any(said.values()) or has_end or choice.get("logprobs")):
            return None
        if not self._is_chat:
            return {**choice, "text": text}
        return {**choice, "delta": {**said, "content": text} if text else said}

    def _without_overlap(self, text: str) -> str:
        if text and len(self.echo) >= _SHORTEST_ECHO:
            text = text.removeprefix(self.echo)
        if text:
            self.echo = ""
        while self.overlap and text and text[0] == self.overlap[0]:
            self.overlap, text = self.overlap[1:], text[1:]
        if text:
            self.overlap = ""
        return text
