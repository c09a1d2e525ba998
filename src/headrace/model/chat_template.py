"""Chat templates: a list of messages to the text that a model was trained on.

Templates are Jinja programs that come with model files. They run in jinja2's immutable sandbox
with the additions that Hugging Face's ``apply_chat_template`` has (transformers, ``chat_template_
utils``), since that is what their authors test with. Templates never come from requests. The
sandbox keeps a template from the machine; its loops and macro calls are counted, so that it ends;
no product is longer than what may be written; and what is written has a cap. What is left to the
word of whoever chose the model file is memory: text can be doubled by joining it to itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.errors import InvalidRequest, ModelFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2 import Environment
    from jinja2.parser import Parser
    from jinja2.runtime import Context

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
Message: TypeAlias = Mapping[str, Json]

MAX_RENDERED_CHARS = 64 << 20  # no request body that is accepted renders to so much
STEPS_TO_BEGIN_WITH = 50_000  # turns of loops and calls of macros: about a tenth of a second
STEPS_PER_MESSAGE = 50  # more, for each message and tool; templates in use need under 10
MAX_INTEGER_BITS = 4096
_TICK = "_headrace_tick"
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
    MemoryError,
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
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: _strftime(unix_time(), form)
        try:
            names = meta.find_undeclared_variables(environment.parse(text))
            self._template = environment.from_string(_counted(environment.parse(text), environment))
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
        steps = _Steps(STEPS_TO_BEGIN_WITH + STEPS_PER_MESSAGE * (len(messages) + len(tools)))
        try:
            for chunk in self._template.generate(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._bos_token,
                eos_token=self._eos_token,
                tools=tools or None,
                documents=None,
                **{_TICK: steps.take},
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


class _Steps:
    """Turns of loops that one rendering may take."""

    def __init__(self, number: int) -> None:
        self._left = number

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TemplateError("it loops too often")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses products and powers that nobody can want."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """See SandboxedEnvironment."""
        if _is_huge(operator, left, right) or _is_huge(operator, right, left):
            raise SecurityError(f"{operator} makes too much")
        return super().call_binop(context, operator, left, right)


def _is_huge(operator: str, left: object, right: object) -> bool:
    if not isinstance(right, int):
        return False
    if isinstance(left, (str, bytes, list, tuple)):
        return len(left) * right > MAX_RENDERED_CHARS
    if not isinstance(left, int):
        return False
    bits = left.bit_length()
    return (bits * right if operator == "**" else bits + right.bit_length()) > MAX_INTEGER_BITS


def _counted(template: nodes.Template, environment: Environment) -> nodes.Template:
    """Let each turn of a loop and each call of a macro take a step."""
    bodies = [node.body for node in template.find_all(nodes.For)]
    bodies += [node.body for node in template.find_all(nodes.Macro)]
    for body in bodies:
        call = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
        body.insert(0, nodes.ExprStmt(call).set_lineno(body[0].lineno if body else 1))
    template.set_environment(environment)
    return template


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
