"""Structured output: what a body asks of its text, tried before anything is queued.

A grammar is compiled and walked a few tokens in a thread of its own (model/grammar.py says why),
within a time. What is wrong with it is an answer 400 that names the field, and is remembered: the
same grammar costs nothing the next time, good or bad.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headrace.errors import (
    BadGrammar,
    InvalidRequest,
    MissingExtra,
    Overloaded,
    UnsupportedField,
)
from headrace.monitoring import table
from headrace.server.gateway.api.requests import given
from headrace.server.gateway.tools import tool_use
from headrace.types import Constraint, ConstraintKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.clock import Clock
    from headrace.model.chat_template import Json
    from headrace.model.grammar import GrammarCompiler
    from headrace.monitoring.metrics import Registry
    from headrace.server.gateway.api.requests import (
        ChatCompletionRequest,
        GenerationFields,
        ResponseFormat,
    )
    from headrace.server.gateway.prompting import Threads
    from headrace.types import Seconds

MAX_REMEMBERED = 256
"""Grammars whose trial is remembered, of at most ``max_grammar_bytes`` each."""


class Structure(NamedTuple):
    """What a request asks of its output, tried. ``tools`` are those to be shown to the model."""

    constraint: Constraint | None = None
    tools: tuple[Mapping[str, Json], ...] = ()


class Trial(Protocol):
    """Tries a grammar."""

    async def check(self, constraint: Constraint, param: str) -> None:
        """Raise InvalidRequest unless output can be held to it; ``param`` names its field."""
        ...


@dataclass(frozen=True, slots=True)
class NoTrial:
    """Structured output is switched off, and refused."""

    async def check(self, constraint: Constraint, param: str) -> None:
        """Refuse."""
        raise UnsupportedField(f"{param}: structured output is switched off here", param=param)


class GrammarTrial:
    """Tries grammars in a thread, one after the other."""

    def __init__(
        self,
        compiler: GrammarCompiler,
        threads: Threads,
        registry: Registry,
        clock: Clock,
        *,
        max_bytes: int,
        max_seconds: Seconds,
    ) -> None:
        self._compiler = compiler
        self._threads = threads
        self._registry = registry
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._faults: OrderedDict[Constraint, str] = OrderedDict()  # "" for a good one

    async def check(self, constraint: Constraint, param: str) -> None:
        """See Trial. Raises UnsupportedField where llguidance is missing."""
        num_bytes = len(constraint.text.encode(errors="replace"))
        if num_bytes > self._max_bytes:
            raise InvalidRequest(
                f"{param}: the grammar has {num_bytes} bytes; at most {self._max_bytes} are taken",
                param=param,
            )
        fault = self._faults.get(constraint)
        if fault is None:
            fault = await self._try(constraint, param)
        verdict = "refused" if fault else "taken"
        self._registry.add(table.CONSTRAINED, constraint.kind, verdict)
        if fault:
            raise InvalidRequest(f"{param}: {fault}", param=param)

    async def _try(self, constraint: Constraint, param: str) -> str:
        """Return what is wrong with a grammar, or nothing, and remember it."""
        begun_at = self._clock.now()
        has_begun = threading.Event()

        def work() -> None:
            has_begun.set()
            self._compiler.check(constraint)

        fault = ""
        try:
            async with asyncio.timeout(self._max_seconds):
                await self._threads.run(work)
        except TimeoutError:
            if not has_begun.is_set():
                raise Overloaded("other grammars are tried; try again later") from None
            return f"trying the grammar took more than {self._max_seconds:g} s; simplify it"
        except BadGrammar as error:
            fault = f"no output can be held to this: {error}"
        except MissingExtra as error:
            raise UnsupportedField(str(error), param=param) from None
        finally:
            seconds = self._clock.now() - begun_at
            self._registry.observe(table.GRAMMAR_SECONDS, value=seconds)
        self._faults[constraint] = fault
        if len(self._faults) > MAX_REMEMBERED:
            self._faults.popitem(last=False)
        return fault


@dataclass(frozen=True, slots=True)
class Structures:
    """Finds out what bodies ask of their output."""

    trial: Trial

    async def of_chat(self, body: ChatCompletionRequest) -> Structure:
        """Return what a chat asks for. Raises InvalidRequest."""
        use = tool_use(body, _answer_form(body))
        if use is None:
            return await self.of_fields(body)
        others = [param for param, _ in _asked(body) if param != "response_format"]
        if others:
            raise InvalidRequest(
                f"tools and {others[0]} exclude each other; send one", param=others[0]
            )
        await self._check(body, use.constraint, "tools")
        return Structure(use.constraint, use.shown)

    async def of_fields(self, fields: GenerationFields) -> Structure:
        """Return what any body asks for. Raises InvalidRequest."""
        asked = list(_asked(fields))
        if not asked:
            return Structure()
        if len(asked) > 1:
            both = " and ".join(param for param, _ in asked[:2])
            raise InvalidRequest(f"{both} exclude each other; send one", param=asked[1][0])
        ((param, constraint),) = asked
        await self._check(fields, constraint, param)
        return Structure(constraint)

    async def _check(self, fields: GenerationFields, constraint: Constraint, param: str) -> None:
        """Try a grammar that goes with the other fields: a stop in its middle would break it."""
        for name, value in (("stop", fields.stop), ("stop_token_ids", fields.stop_token_ids)):
            if value:
                raise InvalidRequest(
                    f"{name} and {param} exclude each other: the grammar says where to end",
                    param=name,
                )
        await self.trial.check(constraint, param)


def _asked(fields: GenerationFields) -> Iterator[tuple[str, Constraint]]:
    """Yield the fields that ask for structure. Raises InvalidRequest."""
    if fields.response_format is not None and fields.response_format.type != "text":
        yield "response_format", _response_format(fields.response_format)
    yield from _named(
        schema=("guided_json", given(fields.guided_json)),
        regex=("guided_regex", fields.guided_regex),
        choice=("guided_choice", fields.guided_choice),
        grammar=("guided_grammar", fields.guided_grammar),
    )
    outputs = fields.structured_outputs
    if outputs is None:
        return
    yield from _named(
        schema=("structured_outputs.json", given(outputs.json)),
        regex=("structured_outputs.regex", outputs.regex),
        choice=("structured_outputs.choice", outputs.choice),
        grammar=("structured_outputs.grammar", outputs.grammar),
    )
    if outputs.json_object:
        yield "structured_outputs.json_object", Constraint(ConstraintKind.JSON_OBJECT)


def _answer_form(body: ChatCompletionRequest) -> str | None:
    """Return the schema of an answer that is no call, None for free text."""
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    return _response_format(wanted).text or '{"type": "object"}'


def _named(
    *,
    schema: tuple[str, bytes | None],
    regex: tuple[str, str | None],
    choice: tuple[str, list[str] | None],
    grammar: tuple[str, str | None],
) -> Iterator[tuple[str, Constraint]]:
    """Yield those of vLLM's four kinds that are given; with each goes the name of its field."""
    if schema[1] is not None:
        yield schema[0], _schema(schema[1])
    if regex[1] is not None:
        yield regex[0], Constraint(ConstraintKind.REGEX, regex[1])
    if choice[1] is not None:
        texts = " | ".join(map(json.dumps, choice[1]))
        yield choice[0], Constraint(ConstraintKind.GRAMMAR, f"start: {texts}")
    if grammar[1] is not None:
        yield grammar[0], Constraint(ConstraintKind.GRAMMAR, grammar[1])


def _response_format(wanted: ResponseFormat) -> Constraint:
    if wanted.type == "json_object":
        return Constraint(ConstraintKind.JSON_OBJECT)
    if wanted.json_schema is None:
        raise InvalidRequest(
            "response_format of type json_schema needs json_schema",
            param="response_format.json_schema",
        )
    return Constraint(ConstraintKind.JSON_SCHEMA, bytes(wanted.json_schema.schema).decode())


def _schema(content: bytes) -> Constraint:
    """Return a schema that is given as JSON, or as a string that holds JSON."""
    text = content.decode()
    if text.startswith('"'):
        text = json.loads(text)
    return Constraint(ConstraintKind.JSON_SCHEMA, text)
