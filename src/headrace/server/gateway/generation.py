"""One client request while engines work on it: its choices, its usage, its record, its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headrace.errors import DeadlineExceeded, EngineFault, RequestError
from headrace.monitoring.records import RUNNING
from headrace.types import FinishReason, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.monitoring.records import Attempt, RequestRecord
    from headrace.server.gateway.answers import Answer
    from headrace.server.gateway.choice import Choice
    from headrace.server.gateway.figures import Figures
    from headrace.types import Output, RequestId, Seconds


class Release(Protocol):
    """Told of requests that are over."""

    def __call__(self, request_ids: tuple[RequestId, ...], *, unwanted: bool) -> None:
        """Forget them; if ``unwanted``, engines need not go on."""
        ...


@dataclass(slots=True)
class Running:
    """A choice that is not finished. It may have been at several replicas: its tokens go on."""

    choice: Choice
    counts_prompt: bool  # the first choice of its prompt: says how much of it was cached
    first_at: Seconds | None = None  # when its first token came
    last_at: Seconds | None = None  # when its last token came
    attempt: Attempt | None = None  # the current one; None until it was sent to a replica
    is_fresh: bool = True  # the attempt has no token yet


class Generation:
    """Ends once: by its last choice, by an error, or because its client is gone."""

    def __init__(
        self,
        *,
        running: Mapping[RequestId, Running],
        record: RequestRecord,
        answer: Answer,
        figures: Figures,
        release: Release,
        ended: Callable[[RequestRecord], None],
    ) -> None:
        self.record = record
        self._running = dict(running)
        self._answer = answer
        self._figures = figures
        self._release = release
        self._ended = ended

    def placed(self, request_id: RequestId, attempt: Attempt) -> None:
        """A choice was sent to a replica."""
        running = self._running.get(request_id)
        if running is not None:
            running.attempt = attempt
            running.is_fresh = True
            self.record.state = RUNNING
            self.record.choices.setdefault(request_id, []).append(attempt)

    def moved(self, request_id: RequestId, reason: str, now: Seconds) -> None:
        """A choice's attempt was given up, and it waits for another place."""
        running = self._running.get(request_id)
        if running is not None and running.attempt is not None:
            _close(running)
            running.attempt.given_up_at = now
            running.attempt.reason = reason

    def push(self, output: Output, now: Seconds) -> None:
        """Take one choice's tokens of a step."""
        running = self._running[output.request_id]
        if output.tokens:
            self._note_times(running, output, now)
        if output.finish in _FAILURES:
            self.fail(_failure(output), now)
            return
        choice = running.choice
        before = choice.num_tokens
        delta = choice.push(output)
        billed = choice.num_tokens - before
        self.record.output_tokens += billed
        if billed != len(output.tokens):
            self._figures.overshoot(len(output.tokens) - billed)
        self._answer.add(choice.index, delta)
        if delta.finish is not None:
            self._finish(output, delta.finish, now)

    def flush(self) -> None:
        """Send what was pushed since the last flush."""
        self._answer.flush()

    def fail(self, error: RequestError, now: Seconds) -> None:
        """End it for all choices."""
        if self._running:
            self._stop(error.code, now)
            self._answer.fail(error)
            self._ended(self.record)

    def gone(self, now: Seconds) -> None:
        """The client has left."""
        if self._running:
            self._stop(FinishReason.ABORT, now)
            self._ended(self.record)

    def _finish(self, output: Output, finish: FinishReason, now: Seconds) -> None:
        running = self._running.pop(output.request_id)
        self._close(running)
        self.record.last_choice = output.request_id
        self._figures.ended(finish, running.choice.num_tokens)
        self._release((output.request_id,), unwanted=output.finish is None)
        if not self._running:
            self.record.state = finish
            usage = self._usage()
            self._figures.billed(usage, self.record, now)
            self._answer.complete(usage)
            self._ended(self.record)

    def _stop(self, state: str, now: Seconds) -> None:
        ids = tuple(self._running)
        for running in self._running.values():
            self._close(running)
            self._figures.ended(state, running.choice.num_tokens)
        self._running.clear()
        self.record.last_choice = ids[-1]
        self.record.state = state
        self._figures.billed(self._usage(), self.record, now)
        self._release(ids, unwanted=True)

    def _note_times(self, running: Running, output: Output, now: Seconds) -> None:
        if running.is_fresh:
            self._note_first(running, output, now)
        if running.last_at is not None:
            self._figures.next_tokens(now - running.last_at, len(output.tokens), now)
        running.last_at = now

    def _note_first(self, running: Running, output: Output, now: Seconds) -> None:
        """The first token of an attempt, be it the first of all or not."""
        running.is_fresh = False
        attempt = running.attempt
        if attempt is not None:
            attempt.first_at = now
            attempt.timing = output.timing
            attempt.cached_tokens = output.cached_tokens or 0
            self._figures.attempt_began(attempt)
        if running.last_at is not None:
            return
        if running.counts_prompt:
            self.record.cached_tokens += output.cached_tokens or 0
        running.first_at = now
        self._figures.first_token(now - self.record.arrived_at, now)
        self.record.note_first(now - self.record.arrived_at)

    def _close(self, running: Running) -> None:
        """Write down how long a choice took that is over."""
        _close(running)
        if running.first_at is not None and running.last_at is not None:
            self.record.note_choice(running.first_at, running.last_at, running.choice.num_tokens)

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.record.prompt_tokens,
            completion_tokens=self.record.output_tokens,
            cached_tokens=self.record.cached_tokens,
        )


def _close(running: Running) -> None:
    """Write down when the current attempt's last token came."""
    if running.attempt is not None and not running.is_fresh:
        running.attempt.last_at = running.last_at


_FAILURES = (FinishReason.ERROR, FinishReason.DEADLINE, FinishReason.ABORT)


def _failure(output: Output) -> RequestError:
    if output.finish is FinishReason.DEADLINE:
        return DeadlineExceeded("the request's time is over")
    return EngineFault(output.reason or "the engine gave this request up")
