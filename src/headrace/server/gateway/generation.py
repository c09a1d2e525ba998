"""One client request while engines work on it: its choices, its usage, its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.errors import DeadlineExceeded, EngineFault, RequestError
from headrace.types import FinishReason, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.core.scheduler.events import Output
    from headrace.server.gateway.answers import Answer
    from headrace.server.gateway.choice import Choice
    from headrace.server.gateway.figures import Figures
    from headrace.types import RequestId, Seconds, Tokens


class Release(Protocol):
    """Told of requests that are over."""

    def __call__(self, request_ids: tuple[RequestId, ...], *, unwanted: bool) -> None:
        """Forget them; if ``unwanted``, engines need not go on."""
        ...


@dataclass(slots=True)
class Running:
    """A choice that is not finished."""

    choice: Choice
    counts_prompt: bool  # the first choice of its prompt: says how much of it was cached
    last_at: Seconds | None = None  # when its last token came


class Generation:
    """Ends once: by its last choice, by an error, or because its client is gone."""

    def __init__(
        self,
        *,
        running: Mapping[RequestId, Running],
        prompt_tokens: Tokens,
        answer: Answer,
        figures: Figures,
        release: Release,
        since: Seconds,
    ) -> None:
        self._running = dict(running)
        self._prompt_tokens = prompt_tokens
        self._cached_tokens: Tokens = 0
        self._output_tokens: Tokens = 0
        self._answer = answer
        self._figures = figures
        self._release = release
        self._since = since

    def push(self, output: Output, now: Seconds) -> None:
        """Take one choice's tokens of a step."""
        running = self._running[output.request_id]
        if output.tokens:
            self._note_times(running, len(output.tokens), now)
        if output.finish in _FAILURES:
            self.fail(_failure(output))
            return
        choice = running.choice
        before = choice.num_tokens
        delta = choice.push(output)
        billed = choice.num_tokens - before
        self._output_tokens += billed
        if billed != len(output.tokens):
            self._figures.overshoot(len(output.tokens) - billed)
        if running.counts_prompt and output.cached_tokens:
            running.counts_prompt = False
            self._cached_tokens += output.cached_tokens
        self._answer.add(choice.index, delta)
        if delta.finish is not None:
            self._finish(output, delta.finish)

    def flush(self) -> None:
        """Send what was pushed since the last flush."""
        self._answer.flush()

    def fail(self, error: RequestError) -> None:
        """End it for all choices."""
        if self._running:
            self._stop(error.code)
            self._answer.fail(error)

    def gone(self) -> None:
        """The client has left."""
        if self._running:
            self._stop(FinishReason.ABORT)

    def _finish(self, output: Output, finish: FinishReason) -> None:
        running = self._running.pop(output.request_id)
        self._figures.ended(finish, running.choice.num_tokens)
        self._release((output.request_id,), unwanted=output.finish is None)
        if not self._running:
            usage = self._usage()
            self._figures.billed(usage)
            self._answer.complete(usage)

    def _stop(self, reason: str) -> None:
        ids = tuple(self._running)
        for running in self._running.values():
            self._figures.ended(reason, running.choice.num_tokens)
        self._running.clear()
        self._figures.billed(self._usage())
        self._release(ids, unwanted=True)

    def _note_times(self, running: Running, num_tokens: Tokens, now: Seconds) -> None:
        if running.last_at is None:
            self._figures.first_token(now - self._since)
        else:
            self._figures.next_tokens(now - running.last_at, num_tokens)
        running.last_at = now

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._output_tokens,
            cached_tokens=self._cached_tokens,
        )


_FAILURES = (FinishReason.ERROR, FinishReason.DEADLINE, FinishReason.ABORT)


def _failure(output: Output) -> RequestError:
    if output.finish is FinishReason.DEADLINE:
        return DeadlineExceeded("the request's time is over")
    return EngineFault(output.reason or "the engine gave this request up")
