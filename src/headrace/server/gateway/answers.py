"""Where a generation's text goes: a stream of events, or one body at the end.

The head of a stream goes out with the first token, or after a ping period without one: until
then an error still has its proper status. Later it is an event in the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from headrace.server.gateway.http.messages import EVENT_STREAM, Response, error_json
from headrace.server.gateway.shapes import WholeChoice

if TYPE_CHECKING:
    from headrace.errors import RequestError
    from headrace.server.gateway.choice import Delta, PlacedLogprobs
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.server.gateway.shapes import Shape
    from headrace.types import FinishReason, Usage

_PING = b": ping\n\n"
_DONE = b"data: [DONE]\n\n"


class Answer(Protocol):
    """One client's answer while it is made."""

    def add(self, index: int, delta: Delta) -> None:
        """Add to a choice."""
        ...

    def flush(self) -> None:
        """Send what was added since the last flush."""
        ...

    def complete(self, usage: Usage) -> None:
        """Every choice is finished."""
        ...

    def fail(self, error: RequestError) -> None:
        """There is no more to come."""
        ...


class StreamedAnswer:
    """Server-sent events: all of one step in one write."""

    def __init__(self, exchange: Exchange, shape: Shape, *, include_usage: bool) -> None:
        self._exchange = exchange
        self._shape = shape
        self._include_usage = include_usage
        self._begun: set[int] = set()
        self._unsent: list[bytes] = []
        exchange.on_silence = self._ping

    def add(self, index: int, delta: Delta) -> None:
        """Add events."""
        unsent = self._unsent
        if index not in self._begun:
            self._begun.add(index)
            unsent.append(self._shape.first(index))
        if delta.text or delta.logprobs:
            unsent.append(self._shape.text(index, delta.text, delta.logprobs))
        if delta.finish is not None:
            unsent.append(self._shape.finish(index, delta.finish))

    def flush(self) -> None:
        """Send them."""
        unsent = self._unsent
        if unsent:
            payload = unsent[0] if len(unsent) == 1 else b"".join(unsent)
            unsent.clear()
            if payload:
                self._exchange.write(payload, EVENT_STREAM)

    def complete(self, usage: Usage) -> None:
        """Send usage where it was asked for, and the end."""
        if self._include_usage:
            self._unsent.append(self._shape.usage(usage))
        self._end()

    def fail(self, error: RequestError) -> None:
        """Answer with the error's status, or as an event where the stream has begun."""
        if self._exchange.status == 0:
            self._exchange.fail(error)
            return
        self._unsent.append(b"data: " + error_json(error) + b"\n\n")
        self._end()

    def _end(self) -> None:
        self._unsent.append(_DONE)
        payload = b"".join(self._unsent)
        self._unsent.clear()
        self._exchange.write(payload, EVENT_STREAM, last=True)

    def _ping(self) -> None:
        self._exchange.write(_PING, EVENT_STREAM)


class WholeAnswer:
    """One body, when all choices are finished."""

    def __init__(self, exchange: Exchange, shape: Shape, *, num_choices: int) -> None:
        self._exchange = exchange
        self._shape = shape
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._logprobs: list[list[PlacedLogprobs]] = [[] for _ in range(num_choices)]
        self._finishes: dict[int, FinishReason] = {}

    def add(self, index: int, delta: Delta) -> None:
        """Keep it."""
        self._texts[index].append(delta.text)
        self._logprobs[index] += delta.logprobs
        if delta.finish is not None:
            self._finishes[index] = delta.finish

    def flush(self) -> None:
        """Nothing is sent before the end."""

    def complete(self, usage: Usage) -> None:
        """Send the body."""
        choices = [
            WholeChoice("".join(text), self._logprobs[index], self._finishes[index])
            for index, text in enumerate(self._texts)
        ]
        self._exchange.reply(Response(200, self._shape.whole(choices, usage)))

    def fail(self, error: RequestError) -> None:
        """Answer with the error."""
        self._exchange.fail(error)
