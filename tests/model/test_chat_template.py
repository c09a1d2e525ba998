"""Chat templates: Hugging Face's dialect of Jinja, inside walls."""

from __future__ import annotations

import pytest

from headrace.clock import MonotonicClock
from headrace.errors import InvalidRequest, ModelFileError
from headrace.model import chat_template
from headrace.model.chat_template import CHATML, ChatTemplate

HELLO = [{"role": "user", "content": "Hello"}]


def compiled(text: str) -> ChatTemplate:
    return ChatTemplate(
        text, source="m.gguf", bos_token="<s>", eos_token="</s>", unix_time=lambda: 1795368853
    )


def render(text: str, **message: chat_template.Json) -> str:
    return compiled(text).render([message or HELLO[0]])


def test_chatml_is_written_turn_by_turn():
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    template = compiled(CHATML)
    assert template.render(messages) == prompt + "<|im_start|>assistant\n"
    assert template.render(messages, add_generation_prompt=False) == prompt


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{ bos_token }}x{{ eos_token }}", "<s>x</s>"),
        ("{% if tools is none and documents is none %}none{% endif %}", "none"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<é>"}]'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1) }}", '{\n "b": 1,\n "a": 2\n}'),
        ("{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% for i in [1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "2"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "<é>!"),
        ("{{ strftime_now('%d %b %Y') }}", "22 Nov 2026"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),  # trim_blocks, lstrip_blocks
        ("{% set ns = namespace(n=0) %}{% set ns.n = 5 %}{{ ns.n }}", "5"),
        ("{{ '<|im_end|>' | safe }}{{ '<b>' }}", "<|im_end|><b>"),  # nothing is escaped for HTML
    ],
)
def test_what_templates_of_published_models_use_is_there(text: str, rendered: str):
    assert render(text, role="user", content="<é>") == rendered


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ raise_exception('roles must\n alternate') }}", "refuses these messages: roles must"),
        ("{{ messages[0].content + 1 }}", "refuses these messages: can only concatenate"),
        ("{{ messages[5].content.x }}", "refuses these messages:"),
        ("{{ 1 // 0 }}", "refuses these messages: integer division"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "refuses these messages:"),
        ("{{ range(10**9) }}", "refuses these messages: Range too big"),
        ("{% include 'other' %}", "refuses these messages:"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "refuses these messages:"),
    ],
)
def test_a_template_that_cannot_render_is_the_requests_error(text: str, problem: str):
    with pytest.raises(InvalidRequest) as caught:
        render(text)
    assert problem in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.param == "messages"


def test_output_has_a_cap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARS", 1000)
    flood = "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequest, match="more than 1000 characters"):
        render(flood)


NESTED = "{% for a in messages %}{% for b in messages %}{% endfor %}{% endfor %}"
BOMBS = {
    "nested loops": (
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "loops too often",
    ),
    "filtered loops": (
        "{% for i in range(90000) if i > -1 %}{% for j in [1, 2] %}{% endfor %}{% endfor %}",
        "loops too often",
    ),
    "recursive loop": (
        "{% for i in [0, 1] recursive %}{{ loop([0, 1]) }}{% endfor %}",
        "refuses these messages",
    ),
    "macros that call twice": (
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "loops too often",
    ),
    "long text": ("{{ 'a' * 10**9 }}", "makes too much"),
    "long list": ("{{ ([1] * 10**9) | length }}", "makes too much"),
    "long text, the other way": ("{{ 10**9 * 'a' }}", "makes too much"),
    "tower of powers": ("{{ 9**9**9 }}", "makes too much"),
    "squares": (
        "{% set s = namespace(n=9) %}{% for i in range(40) %}{% set s.n = s.n * s.n %}{% endfor %}",
        "makes too much",
    ),
    "globals": ("{{ cycler.__init__.__globals__ }}", "refuses these messages"),
    "subclasses": ("{{ ().__class__.__base__.__subclasses__() }}", "refuses these messages"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_bomb_ends_soon_and_is_refused(name: str):
    text, problem = BOMBS[name]
    clock = MonotonicClock()
    begun = clock.now()
    with pytest.raises(InvalidRequest, match=problem):
        render(text)
    assert clock.now() - begun < 10.0  # a fraction of a second on a machine that is not busy


def test_a_template_that_looks_at_every_pair_of_messages_is_bounded_by_their_number():
    compiled(NESTED).render(HELLO * 200)
    with pytest.raises(InvalidRequest, match="loops too often"):
        compiled(NESTED).render(HELLO * 1000)


def test_a_long_chat_is_no_bomb():
    assert compiled(CHATML).render(HELLO * 4096).count("Hello") == 4096


@pytest.mark.parametrize("text", ["{% if %}", "{{ (", "{% nothing %}", "{% generation %}"])
def test_a_template_that_is_not_valid_is_the_files_error(text: str):
    with pytest.raises(ModelFileError, match=r"m.gguf: the chat template is not valid Jinja: "):
        compiled(text)
