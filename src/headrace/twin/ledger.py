"""Ledger: what became of every request, as its client sees it."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import InvariantBroken
from headrace.monitoring.goodput import Pace
from headrace.types import FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.twin.groups import Group
    from headrace.twin.texts import Text
    from headrace.twin.traces.terms import Terms
    from headrace.types import Output, RequestId, Seconds, Tokens


@dataclass(slots=True, eq=False)
class Stream:
    """A request that has not ended."""

    began: Seconds
    prompt_tokens: Tokens
    max_tokens: Tokens
    text: Text
    terms: Terms
    group: Group
    num_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    first: Seconds | None = None
    last: Seconds = 0.0

    def end(self, state: str, now: Seconds) -> None:
        """Have its group count its end."""
        ttft = itl = None
        if self.first is not None:
            ttft = self.first - self.began
            itl = (self.last - self.first) / (self.num_tokens - 1) if self.num_tokens > 1 else None
        self.group.end(self.began, self.terms, Pace(now - self.began, ttft, itl), state)


@dataclass(slots=True, eq=False)
class TokenCounts:
    """Tokens of all requests together."""

    prompt: Tokens = 0  # of requests that got a first token
    cached: Tokens = 0  # of those
    output: Tokens = 0
    wrong: Tokens = 0  # lost, repeated or another request's


class Ledger:
    """Counts and times, in seconds of the simulation. ``on_end`` is called at each end."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.ttft = array("d")
        self.itl = array("f")  # one for every token but the first
        self.e2e = array("d")
        self.failures: Counter[str] = Counter()  # by code
        self.num_requests = 0
        self.num_completed = 0
        self.tokens = TokenCounts()
        self._open: dict[RequestId, Stream] = {}
        self._on_end = on_end

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def begin(self, request_id: RequestId, stream: Stream) -> None:
        """A client sends a request."""
        self._open[request_id] = stream
        stream.group.begin(stream.began)
        self.num_requests += 1

    def take(self, outputs: Sequence[Output], now: Seconds) -> None:
        """Tokens arrive at clients."""
        for output in outputs:
            stream = self._open.get(output.request_id)
            if stream is None:
                raise InvariantBroken(f"output for {output.request_id}, which has ended")
            if output.tokens:
                self._take_tokens(stream, output, now)
            if output.finish is not None:
                self._end(output.request_id, stream, output.finish, now)

    def fail(self, request_id: RequestId, code: str, now: Seconds) -> None:
        """A request ends without an answer."""
        self._open.pop(request_id).end(code, now)
        self.failures[code] += 1
        self._on_end()

    def _take_tokens(self, stream: Stream, output: Output, now: Seconds) -> None:
        if stream.first is None:
            stream.first = now
            self.ttft.append(now - stream.began)
            stream.group.first_token(stream.began, now)
            self.tokens.prompt += stream.prompt_tokens
            self.tokens.cached += output.cached_tokens or 0
        else:
            self.itl.append(now - stream.last)
            stream.group.next_token(stream.began, now - stream.last)
        stream.last = now
        text = stream.text
        position = stream.prompt_tokens + stream.num_tokens
        for token in output.tokens:
            if token != (text.first + position * text.step) % text.vocab_size:
                self.tokens.wrong += 1
            position += 1
        stream.num_tokens = position - stream.prompt_tokens
        self.tokens.output += len(output.tokens)
        stream.group.output_tokens += len(output.tokens) * stream.group.counts(now)

    def _end(
        self, request_id: RequestId, stream: Stream, finish: FinishReason, now: Seconds
    ) -> None:
        del self._open[request_id]
        stream.end(finish.value, now)
        if finish is FinishReason.LENGTH:
            self.tokens.wrong += abs(stream.max_tokens - stream.num_tokens)
            self.num_completed += 1
            self.e2e.append(now - stream.began)
        else:
            self.failures[finish.value] += 1
        self._on_end()
