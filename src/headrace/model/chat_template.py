"""Chat templates: a list of messages to the text that a model was trained on.

Templates are Jinja programs that come with model files. They run in jinja2's immutable sandbox
with the additions that Hugging Face's ``apply_chat_template`` has (transformers, ``chat_template_
utils``), since that is what their authors test with. The sandbox keeps a template from the
machine and the cap on its output keeps it from flooding us; that it ends is the word of whoever
chose the model file. Templates never come from requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.errors import InvalidRequest, ModelFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2.parser import Parser

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
Message: TypeAlias = Mapping[str, Json]

MAX_RENDERED_CHARS = 64 << 20  # no request body that is accepted renders to so much
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What a template can stumble over when messages are not as it expects them.
_STUMBLES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A compiled template. ``source`` names the model file in messages.

    ``unix_time`` is read when a template asks for the date (UTC).
    """

    def __init__(
        self,
        text: str,
        *,
        source: str,
        bos_token: str,
        eos_token: str,
        unix_time: Callable[[], int],
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: _strftime(unix_time(), form)
        try:
            self._template = environment.from_string(text)
            names = meta.find_undeclared_variables(environment.parse(text))
        except (TemplateSyntaxError, RecursionError) as error:
            raise ModelFileError(
                f"{source}: the chat template is not valid Jinja: {_one_line(error)}; use another "
                f"model file"
            ) from None
        self.knows_tools = "tools" in names  # how to show them, their calls and their answers
        self._bos_token = bos_token
        self._eos_token = eos_token

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] = (),
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt for these messages. Raises InvalidRequest where it cannot."""
        chunks = []
        room = MAX_RENDERED_CHARS
        try:
            for chunk in self._template.generate(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._bos_token,
                eos_token=self._eos_token,
                tools=tools or None,
                documents=None,
            ):
                room -= len(chunk)
                if room < 0:
                    raise InvalidRequest(
                        f"the chat renders to more than {MAX_RENDERED_CHARS} characters",
                        param="messages",
                    )
                chunks.append(chunk)
        except _STUMBLES as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {_one_line(error)}",
                param="messages",
            ) from None
        return "".join(chunks)


class _Generation(Extension):
    """``{% generation %} .. {% endgeneration %}`` marks assistant text for training; here: text."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are jinja2's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime(unix_time: int, form: str) -> str:
    return datetime.fromtimestamp(unix_time, UTC).strftime(form)


def _to_json(
    value: Json,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is; jinja2's own filter escapes it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
