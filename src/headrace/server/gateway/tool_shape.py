"""A chat whose answer may call tools: calls are taken out of its text and told apart.

What a client gets is OpenAI's: ``tool_calls`` beside ``content``, in a stream one delta with name
and id, then arguments in pieces; ``finish_reason`` is ``tool_calls`` where the answer ended with a
call, which is then complete and valid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from headrace.server.gateway.api.responses import (
    ChatChoice,
    ChatMessage,
    FunctionCallBody,
    ToolCallBody,
)
from headrace.server.gateway.tools import Argued, Called, CallFinder, Part, Said
from headrace.types import FinishReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.server.gateway.choice import PlacedLogprobs
    from headrace.server.gateway.shapes import ChatShape, WholeChoice
    from headrace.types import Usage

TOOL_CALLS = "tool_calls"

_encode = msgspec.json.encode


class ToolShape:
    """A Shape round that of a plain chat."""

    def __init__(self, chat: ChatShape) -> None:
        self._chat = chat
        self._finders: dict[int, CallFinder] = {}  # by choice

    def first(self, index: int) -> bytes:
        """The role."""
        return self._chat.first(index)

    def text(self, index: int, text: str, logprobs: Sequence[PlacedLogprobs]) -> bytes:
        """Deltas of content and of calls. Log-probabilities are the whole text's."""
        parts = self._finder(index).push(text)
        chunks = [self._chunk(index, part) for part in parts]
        if logprobs:
            chunks.append(self._chat.delta(index, b"{}", logprobs))
        return b"".join(chunks)

    def finish(self, index: int, finish: FinishReason) -> bytes:
        """What was held back, and the reason."""
        finder = self._finder(index)
        chunks = [self._chunk(index, part) for part in finder.flush()]
        return b"".join((*chunks, self._chat.end(index, _reason(finish, finder))))

    def usage(self, usage: Usage) -> bytes:
        """No choices, usage."""
        return self._chat.usage(usage)

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """A chat.completion with calls."""
        return self._chat.body(
            [self._choice(index, choice) for index, choice in enumerate(choices)], usage
        )

    def _choice(self, index: int, choice: WholeChoice) -> ChatChoice:
        finder = CallFinder()
        content, names, arguments = "", {}, dict[int, str]()
        for part in (*finder.push(choice.text), *finder.flush()):
            match part:
                case Said(text):
                    content += text
                case Called(number, name):
                    names[number] = name
                case Argued(number, json):
                    arguments[number] = arguments.get(number, "") + json
        calls = [
            ToolCallBody(
                id=self._call_id(index, number),
                type="function",
                function=FunctionCallBody(name, arguments.get(number, "")),
            )
            for number, name in names.items()
        ]
        message = ChatMessage(content, tool_calls=calls) if calls else ChatMessage(content)
        if calls and not content:
            message = msgspec.structs.replace(message, content=None)
        reason = _reason(choice.finish, finder)
        return ChatChoice(index, message, self._chat.logprobs_of(choice), reason)

    def _finder(self, index: int) -> CallFinder:
        finder = self._finders.get(index)
        if finder is None:
            finder = self._finders[index] = CallFinder()
        return finder

    def _chunk(self, index: int, part: Part) -> bytes:
        match part:
            case Said(text):
                return self._chat.text(index, text, ())
            case Called(number, name):
                call = ToolCallBody(
                    index=number,
                    id=self._call_id(index, number),
                    type="function",
                    function=FunctionCallBody(name, ""),
                )
            case Argued(number, json):
                call = ToolCallBody(index=number, function=FunctionCallBody(msgspec.UNSET, json))
        return self._chat.delta(index, b'{"tool_calls":[%b]}' % _encode(call))

    def _call_id(self, index: int, number: int) -> str:
        return f"call_{self._chat.identity.id.removeprefix('chatcmpl-')}_{index}_{number}"


def _reason(finish: FinishReason, finder: CallFinder) -> str:
    is_call = finish is FinishReason.STOP and finder.num_calls > 0
    return TOOL_CALLS if is_call else finish.value
