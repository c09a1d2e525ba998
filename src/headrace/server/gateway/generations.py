"""Requests under way, by the ids that the Router knows them by."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from headrace.core.router.events import ClientGone, RequestArrived
from headrace.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    DeadlineInfeasible,
    EngineFault,
    InvalidRequest,
    NotReady,
    Overloaded,
    PoisonRequest,
    ReplicaLost,
    RequestError,
)
from headrace.monitoring.records import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.clock import Clock
    from headrace.core.router.events import Dispatch, Fail, GoOn, RouterEvent
    from headrace.types import Output, Request, RequestId, Seconds, Tokens

_LOG = logging.getLogger(__name__)

_ERRORS: dict[str, type[RequestError]] = {
    error.code: error
    for error in (
        InvalidRequest,
        ContextLengthExceeded,
        EngineFault,
        PoisonRequest,
        ReplicaLost,
        Overloaded,
        NotReady,
        DeadlineInfeasible,
        DeadlineExceeded,
    )
}


class Asker(Protocol):
    """One client request under way. ``Generation`` is one, and foreign/passage.py has another."""

    def placed(self, request_id: RequestId, attempt: Attempt) -> None:
        """A choice was sent to a replica."""
        ...

    def moved(self, request_id: RequestId, reason: str, now: Seconds) -> None:
        """A choice's attempt was given up, and it waits for another place."""
        ...

    def push(self, output: Output, now: Seconds) -> None:
        """Take one choice's tokens of a step."""
        ...

    def flush(self) -> None:
        """Send what was pushed since the last flush."""
        ...

    def fail(self, error: RequestError, now: Seconds) -> None:
        """End it for all choices."""
        ...


class Generations:
    """Carries what the Router decides about requests to the answers of their clients."""

    def __init__(self, feed: Callable[[RouterEvent], None], clock: Clock) -> None:
        self._feed = feed
        self._clock = clock
        self._generations: dict[RequestId, Asker] = {}

    def __len__(self) -> int:
        """Choices under way."""
        return len(self._generations)

    def begin(
        self,
        generation: Asker,
        groups: Sequence[tuple[Request, ...]],
        prompt_tokens: Tokens | None = None,
    ) -> None:
        """Ask the Router for a place for each group; answers come to the generation.

        ``prompt_tokens`` is an estimate where nobody tokenised the prompt.
        """
        for group in groups:
            for request in group:
                self._generations[request.id] = generation
        for group in groups:
            self._feed(RequestArrived(group, prompt_tokens))

    def release(self, request_ids: tuple[RequestId, ...], *, unwanted: bool) -> None:
        """Forget requests that are over; if ``unwanted``, engines are told."""
        for request_id in request_ids:
            del self._generations[request_id]
        if unwanted:
            self._feed(ClientGone(request_ids))

    def place(self, dispatch: Dispatch, policy: str) -> None:
        """An attempt goes to a replica."""
        generation = self._generations.get(dispatch.client_id)
        if generation is not None:
            attempt = Attempt(
                dispatch.choice,
                policy,
                dispatched_at=self._clock.now(),
                prompt_tokens=len(dispatch.request.prompt),
            )
            generation.placed(dispatch.client_id, attempt)

    def move(self, move: GoOn) -> None:
        """An attempt is given up; another follows."""
        generation = self._generations.get(move.request_id)
        if generation is not None:
            generation.moved(move.request_id, move.reason, self._clock.now())

    def fail(self, failure: Fail) -> None:
        """A request ends without an answer."""
        generation = self._generations.get(failure.request_id)
        if generation is not None:
            error = _ERRORS.get(failure.code, EngineFault)
            generation.fail(
                error(failure.reason, retry_after=failure.retry_after), self._clock.now()
            )

    def deliver(self, outputs: tuple[Output, ...]) -> None:
        """Push all tokens of a step, then send: one write for each client."""
        now = self._clock.now()
        generations = self._generations
        touched = []
        for output in outputs:
            generation = generations.get(output.request_id)
            if generation is None:
                continue
            touched.append(generation)
            try:
                generation.push(output, now)
            except Exception:  # what goes wrong with one request is kept from the others
                _LOG.exception("request %s failed", output.request_id)
                generation.fail(RequestError("internal error"), now)
        for generation in touched:
            generation.flush()
