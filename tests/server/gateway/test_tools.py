"""Calls in a text: found however it is cut; grammars of calls; what templates are given."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import BadGrammar, InvalidRequest
from headrace.model.grammar import GrammarCompiler
from headrace.server.gateway.api.requests import ChatCompletionRequest
from headrace.server.gateway.tools import (
    AFTER_ARGUMENTS,
    BEFORE_ARGUMENTS,
    BEFORE_NAME,
    Argued,
    Called,
    CallFinder,
    Said,
    tool_use,
)

if TYPE_CHECKING:
    from headrace.model.text import TextModel
    from headrace.server.gateway.tools import Part

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Paris", "Rome"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "description": "the time"}},
]


def call(name: str, arguments: str) -> str:
    return f"{BEFORE_NAME}{name}{BEFORE_ARGUMENTS}{arguments}{AFTER_ARGUMENTS}"


def body_of(**fields: object) -> ChatCompletionRequest:
    whole = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, **fields}
    return msgspec.json.decode(json.dumps(whole), type=ChatCompletionRequest)


def gathered(parts: list[Part]) -> tuple[str, list[tuple[str, str]]]:
    """Return the text, and each call."""
    text, calls = "", []
    for part in parts:
        match part:
            case Said(said):
                text += said
            case Called(number, name):
                assert number == len(calls)
                calls.append((name, ""))
            case Argued(number, more):
                assert number == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + more)
    return text, calls


TEXTS = st.lists(
    st.sampled_from(["a", "<", "<tool_call", ">", "\n", "{", '"', "name", "</tool_call>"])
).map("".join)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["f", "weather", "a-b_C"]),
        st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=3).map(json.dumps),
    ),
    max_size=3,
)


@given(text=TEXTS, calls=CALLS, data=st.data())
def test_calls_are_found_however_the_text_is_cut(
    text: str, calls: list[tuple[str, str]], data: st.DataObject
) -> None:
    text = text.replace("<tool_call>", "")
    said = text + "\n".join(call(*one) for one in calls)
    cuts = data.draw(st.lists(st.integers(0, len(said)), max_size=8).map(sorted))
    finder, parts = CallFinder(), []
    for begin, end in zip([0, *cuts], [*cuts, len(said)], strict=True):
        parts += finder.push(said[begin:end])
    parts += finder.flush()
    assert gathered(parts) == (text, calls)
    assert finder.num_calls == len(calls)


def test_text_goes_on_at_once_unless_a_call_may_begin_in_it():
    finder = CallFinder()
    assert finder.push("the mill <") == [Said("the mill ")]
    assert finder.push("b") == [Said("<b")]
    assert finder.push("<tool_call>\n{") == []
    assert finder.push('"name": "f", "arguments": {"a') == [Called(0, "f"), Argued(0, '{"a')]
    assert finder.push('": 1}}') == [Argued(0, '": 1}')]


@pytest.mark.parametrize("length", range(len(call("f", "{}"))))
def test_a_call_that_is_cut_off_is_no_text_and_no_whole_call(length: int):
    finder = CallFinder()
    said, calls = gathered([*finder.push("hi" + call("f", "{}")[:length]), *finder.flush()])
    assert said.removeprefix("hi") in "<tool_call>"[:-1]
    assert calls in ([], [("f", "")], [("f", "{")], [("f", "{}")])
    assert finder.num_calls == 0


ANSWERS = {
    "required": ("required", None, [call("weather", '{"city": "Rome"}'), call("now", "{}")]),
    "named": ({"type": "function", "function": {"name": "now"}}, None, [call("now", "{}")]),
    "auto": ("auto", None, ["hello", "a < b", "", "so: " + call("now", "{}")]),
    "default": (None, None, [call("now", "{}") + "\n" + call("now", "{}")]),
    "several": ("required", True, [call("now", "{}") + "\n" + call("now", "{}")]),
}
WRONG = {
    "required": ("required", None, ["hello", call("other", "{}"), call("now", '{"a": 1}')]),
    "arguments": ("required", None, [call("weather", '{"city": "Oslo"}'), call("weather", "[]")]),
    "named": ({"type": "function", "function": {"name": "now"}}, None, [call("weather", "{}")]),
    "auto": ("auto", None, ["so: " + call("other", "{}"), "so: <tool_call> what"]),
    "one": ("auto", False, [call("now", "{}") + "\n" + call("now", "{}")]),
    "one of required": ("required", None, [call("now", "{}") + "\n" + call("now", "{}")]),
}


def follow(text: TextModel, said: str, choice: object, several: bool | None) -> bool:
    """Tell whether a text is a whole answer under the grammar of the tools."""
    use = tool_use(body_of(tool_choice=choice, parallel_tool_calls=several))
    assert use is not None
    grammar = GrammarCompiler(lambda: text.tokenizer).compile(use.constraint)
    try:
        grammar.consume(text.tokenizer.encode(said))
    except BadGrammar:
        return False
    return grammar.is_whole()


@pytest.mark.parametrize(("choice", "several", "texts"), ANSWERS.values(), ids=ANSWERS)
def test_answers_that_a_grammar_of_tools_admits(
    text: TextModel, choice: object, several: bool | None, texts: list[str]
) -> None:
    for said in texts:
        assert follow(text, said, choice, several), said


@pytest.mark.parametrize(("choice", "several", "texts"), WRONG.values(), ids=WRONG)
def test_answers_that_a_grammar_of_tools_does_not_admit(
    text: TextModel, choice: object, several: bool | None, texts: list[str]
) -> None:
    for said in texts:
        assert not follow(text, said, choice, several), said


@pytest.mark.parametrize("said", ['{"city": "Rome"}', call("now", "{}"), "Rome", "{}", ""])
def test_an_answer_that_is_no_call_follows_the_response_format(text: TextModel, said: str):
    use = tool_use(body_of(), json.dumps(CITY))
    assert use is not None
    grammar = GrammarCompiler(lambda: text.tokenizer).compile(use.constraint)
    valid = grammar.count_valid(text.tokenizer.encode(said)) == len(text.tokenizer.encode(said))
    if valid:
        grammar.consume(text.tokenizer.encode(said))
    assert (valid and grammar.is_whole()) == ("Rome" in said[2:] or "now" in said)


def test_without_tools_or_with_choice_none_there_is_nothing_to_use():
    assert tool_use(body_of(tools=None)) is None
    assert tool_use(body_of(tools=[])) is None
    assert tool_use(body_of(tool_choice="none")) is None


REFUSED = {
    "tools": {"tools": None, "tool_choice": "required"},
    "tools[1]": {"tools": [TOOLS[1], TOOLS[1]]},
    "tool_choice": {"tool_choice": {"type": "function", "function": {"name": "other"}}},
    "tools[0].function.parameters": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": [1]}}]
    },
}


@pytest.mark.parametrize("param", REFUSED)
def test_tools_that_do_not_fit_together_are_refused_by_name(param: str):
    with pytest.raises(InvalidRequest) as refusal:
        tool_use(body_of(**REFUSED[param]))
    assert refusal.value.param == param


def test_templates_are_given_tools_as_they_expect_them():
    use = tool_use(body_of())
    assert use is not None
    weather, now = use.shown
    assert weather == {"type": "function", "function": {"name": "weather", "parameters": CITY}}
    function = now["function"]
    assert isinstance(function, dict)
    assert function["description"] == "the time"
    assert function["parameters"] == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }
