"""Tools: the grammar that holds a model to valid calls, and the calls found in its text.

Calls are written as Hermes and Qwen models are trained to write them::

    <tool_call>
    {"name": "NAME", "arguments": {...}}
    </tool_call>

to the letter, since every request with tools is held to a grammar: with ``tool_choice`` required or
a function's name from the first token on, with auto from where the model begins a call by itself
(or answers, where ``response_format`` has a schema for that). So finding them again is a search for
three fixed texts, none of which can stand inside a call: JSON on one line has no line break.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

import msgspec

from headrace.errors import InvalidRequest
from headrace.model.grammar import JSON_FORM
from headrace.server.gateway.api.requests import ToolReference, given
from headrace.types import Constraint, ConstraintKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.model.chat_template import Json
    from headrace.server.gateway.api.requests import ChatCompletionRequest, Function, Tool

OPEN = "<tool_call>"
BEFORE_NAME = '<tool_call>\n{"name": "'
BEFORE_ARGUMENTS = '", "arguments": '
AFTER_ARGUMENTS = "}\n</tool_call>"

_NO_PARAMETERS: dict[str, Json] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


class ToolUse(NamedTuple):
    """What a request wants of its tools: those to be shown to the model, and the grammar."""

    shown: tuple[Mapping[str, Json], ...]  # as templates take them
    constraint: Constraint


def tool_use(body: ChatCompletionRequest, answer: str | None = None) -> ToolUse | None:
    """Return how a chat uses its tools, None if it has none to use. Raises InvalidRequest.

    ``answer`` is the schema of an answer that is no call; None for any text.
    """
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice asks for a tool and there is none", param="tools")
        return None
    if choice == "none":
        return None
    functions = _callable(body.tools, choice)
    if choice in (None, "auto"):
        several = body.parallel_tool_calls is not False
        first = "TEXT | opening" if answer is None else f'answer | "{OPEN}"'
    else:
        several = body.parallel_tool_calls is True and choice == "required"
        first = f'"{OPEN}"'
    start = f"{first} call{' (again call)*' if several else ''}"
    shown = tuple(_shown(function) for function in functions.values())
    return ToolUse(shown, Constraint(ConstraintKind.GRAMMAR, _grammar(start, functions, answer)))


def _callable(tools: Sequence[Tool], choice: str | ToolReference | None) -> dict[str, _Callable]:
    """Return the functions that may be called, by name."""
    functions: dict[str, _Callable] = {}
    for place, tool in enumerate(tools):
        name = tool.function.name
        if name in functions:
            raise InvalidRequest(f"two tools are named {name}", param=f"tools[{place}]")
        functions[name] = _Callable(tool.function, _schema(tool.function, place))
    if isinstance(choice, ToolReference):
        name = choice.function.name
        if name not in functions:
            raise InvalidRequest(f"there is no tool {name!r}", param="tool_choice")
        return {name: functions[name]}
    return functions


class _Callable(NamedTuple):
    function: Function
    schema: dict[str, Json]  # of its arguments


def _schema(function: Function, place: int) -> dict[str, Json]:
    """Return the schema of a function's arguments, which are an object in any case."""
    parameters = given(function.parameters)
    if parameters is None:
        return dict(_NO_PARAMETERS)
    param = f"tools[{place}].function.parameters"
    return {"type": "object", **_object(parameters, param)}


def _object(schema: str | bytes, param: str) -> dict[str, Json]:
    try:
        return cast("dict[str, Json]", msgspec.json.decode(schema, type=dict[str, object]))
    except (msgspec.ValidationError, RecursionError):
        raise InvalidRequest("a JSON schema is an object", param=param) from None


def _in_form(schema: Mapping[str, Json]) -> str:
    """Return a schema for JSON on one line, whatever it says itself: calls are found by that."""
    return json.dumps({**schema, "x-guidance": JSON_FORM})


def _shown(function: _Callable) -> Mapping[str, Json]:
    declared: dict[str, Json] = {"name": function.function.name}
    if function.function.description is not None:
        declared["description"] = function.function.description
    declared["parameters"] = function.schema
    return {"type": "function", "function": declared}


def _grammar(start: str, functions: Mapping[str, _Callable], answer: str | None) -> str:
    """Return the grammar of calls in Lark, as llguidance reads it: ``%json`` holds a schema."""
    rules = [
        "%llguidance {}",
        f"start: {start}",
        f'opening[lazy]: TEXT "{OPEN}"',
        f'again: "\\n{OPEN}"',
        "TEXT: /(.|\\n)*/",
        "call: " + " | ".join(f"call_{number}" for number in range(len(functions))),
    ]
    if answer is not None:
        rules.append(f"answer: %json {_in_form(_object(answer, 'response_format'))}")
    before_name = BEFORE_NAME.removeprefix(OPEN)
    for number, (name, (_, schema)) in enumerate(functions.items()):
        head = json.dumps(before_name + name + BEFORE_ARGUMENTS)
        rules.append(f"call_{number}: {head} arguments_{number} {json.dumps(AFTER_ARGUMENTS)}")
        rules.append(f"arguments_{number}: %json {_in_form(schema)}")
    return "\n".join(rules) + "\n"


class Said(NamedTuple):
    """Text that is no part of a call."""

    text: str


class Called(NamedTuple):
    """A call begins; calls count from 0."""

    number: int
    name: str


class Argued(NamedTuple):
    """More of the arguments of a call."""

    number: int
    json: str


Part: TypeAlias = Said | Called | Argued


class _In(Enum):
    TEXT = BEFORE_NAME  # the value is what ends it
    NAME = BEFORE_ARGUMENTS
    ARGUMENTS = AFTER_ARGUMENTS
    BETWEEN = "\n" + BEFORE_NAME


class CallFinder:
    """Finds calls in the text of one choice, which comes in pieces cut anywhere."""

    def __init__(self) -> None:
        self.num_calls = 0  # that are complete
        self._in = _In.TEXT
        self._held = ""

    def push(self, text: str) -> list[Part]:
        """Return what is certain now. Names come whole."""
        parts: list[Part] = []
        self._held += text
        while self._held:
            before, found, after = self._held.partition(self._in.value)
            if not found and self._in is _In.NAME:
                break
            keep = 0 if found else _overlap(before, self._in.value)
            self._put(parts, before[: len(before) - keep])
            self._held = after if found else before[len(before) - keep :]
            if not found:
                break
            self._advance()
        return parts

    def flush(self) -> list[Part]:
        """End the text: what was held back is text, but for a call that was cut off."""
        held, self._held = self._held, ""
        if self._in is _In.TEXT and held and not held.startswith(OPEN):
            return [Said(held)]
        return []

    def _put(self, parts: list[Part], text: str) -> None:
        if not text:
            return
        if self._in is _In.TEXT:
            parts.append(Said(text))
        elif self._in is _In.NAME:
            parts.append(Called(self.num_calls, text))
        elif self._in is _In.ARGUMENTS:
            parts.append(Argued(self.num_calls, text))

    def _advance(self) -> None:
        if self._in is _In.ARGUMENTS:
            self.num_calls += 1
            self._in = _In.BETWEEN
        else:
            self._in = _In.ARGUMENTS if self._in is _In.NAME else _In.NAME


def _overlap(text: str, mark: str) -> int:
    """Return how much of the end of ``text`` may be the beginning of ``mark``."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
