"""One client's request on its way through, and its attempts at replicas.

Nothing goes to the client before a replica has answered well: the first whole event of a stream,
or the whole of another answer. Until then a failure is nobody's business but the Router's, which
tries elsewhere. Afterwards a stream goes on elsewhere if it can (continuing.py); if it cannot, the
client is told so in the stream, and never sees a finish that was none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import ReplicaLost
from headrace.monitoring.records import RUNNING
from headrace.server.gateway.foreign.continuing import check
from headrace.server.gateway.foreign.resuming import CannotResume, NothingKept
from headrace.server.gateway.http.messages import EVENT_STREAM, Response, error_json
from headrace.types import FinishReason, Output, RequestId, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.errors import RequestError
    from headrace.monitoring.records import Attempt as AttemptRecord
    from headrace.monitoring.records import RequestRecord
    from headrace.server.gateway.figures import Figures
    from headrace.server.gateway.foreign.answers import Billing
    from headrace.server.gateway.foreign.resuming import Kept
    from headrace.server.gateway.http.exchange import Exchange
    from headrace.types import Seconds, Tokens

_DONE = b"data: [DONE]\n\n"
_REFUSED = "refused"  # by the replica, with a status of its own
_NOTHING_YET = NothingKept()


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedRequest:
    """What a client sent, and what was made of it."""

    path: str
    body: bytes | bytearray
    model: str | None  # as the client calls it
    headers: bytes  # further header lines for the replica, each with its line end
    stream: bool
    prompt_bytes: int
    prompt_tokens: Tokens  # an estimate


class Passage:
    """Implements Asker (generations.py). Ends once: by an answer, an error, or because nobody asks.

    ``ended`` is told when it is over, before its last bytes are written: what it billed, and
    whether its replica still works for nobody.
    """

    def __init__(
        self,
        request: PassedRequest,
        exchange: Exchange,
        *,
        record: RequestRecord,
        figures: Figures,
        ended: Callable[[Passage, Billing | None, bool], None],
    ) -> None:
        self.request = request
        self.record = record
        self.over = False
        self.kept: Kept = _NOTHING_YET  # what the client got of a stream
        self._give_up: Callable[[], None] | None = None  # of the current attempt
        self._exchange = exchange
        self._figures = figures
        self._ended = ended
        self._last_at: Seconds | None = None  # when some of an answer came last
        self._attempt: AttemptRecord | None = None  # the latest
        figures.accepted(1, request.prompt_tokens)

    @property
    def begun(self) -> bool:
        """Whether the client has got some of an answer."""
        return self._last_at is not None

    def hold(self, give_up: Callable[[], None]) -> None:
        """A new attempt begins; whatever one before it still brings is not wanted any more."""
        if self._give_up is not None:
            self._give_up()
        self._give_up = give_up

    def placed(self, request_id: RequestId, attempt: AttemptRecord) -> None:
        """It was sent to a replica."""
        self.record.state = RUNNING
        self.record.choices.setdefault(request_id, []).append(attempt)
        self._attempt = attempt

    def moved(self, request_id: RequestId, reason: str, now: Seconds) -> None:
        """Its attempt was given up, and it waits for another place."""
        attempt = self._attempt
        if attempt is not None:
            attempt.given_up_at = now
            attempt.reason = reason
        self.check_hope(reason, now)

    def check_hope(self, reason: str, now: Seconds) -> None:
        """End, for ``reason``, if an answer has begun that cannot go on elsewhere."""
        if self.over or not self.begun:
            return
        try:
            self.kept.sent()
            check(self.request.body)
        except CannotResume as error:
            message = f"{reason}; the stream cannot go on elsewhere: {error}"
            self.fail(ReplicaLost(message), now)

    def push(self, output: Output, now: Seconds) -> None:
        """The Router's echo of what was sent already."""

    def flush(self) -> None:
        """Everything was sent when it came."""

    def send(self, events: bytes, content_type: bytes, num_events: int, now: Seconds) -> None:
        """Send whole events of a stream; ``num_events`` of them count as a token each."""
        self._note(num_events, now)
        self.kept.note(events)
        self._exchange.write(events, content_type)

    def complete(
        self,
        events: bytes,
        content_type: bytes,
        num_events: int,
        now: Seconds,
        billing: Billing | None,
    ) -> None:
        """Send the end of a stream. What the replica bills is truer than what was counted."""
        self._note(num_events, now)
        self._end(FinishReason.STOP, now, billing)
        self._exchange.write(events, content_type, last=True)

    def reply(self, response: Response, billing: Billing | None, now: Seconds) -> None:
        """Send a whole answer, which may be the replica's refusal."""
        if response.status < 400:
            self._note(0, now)
            self._end(FinishReason.STOP, now, billing)
        else:
            self._end(_REFUSED, now)
        self._exchange.reply(response)

    def fail(self, error: RequestError, now: Seconds) -> None:
        """There is no answer, or no more of it."""
        if self.over:
            return
        self._end(error.code, now, unwanted=True)
        if self._exchange.status == 0:
            self._exchange.fail(error)
        else:
            event = b"data: " + error_json(error) + b"\n\n" + _DONE
            self._exchange.write(event, EVENT_STREAM, last=True)

    def gone(self, now: Seconds) -> None:
        """The client has left."""
        if not self.over:
            self._end(FinishReason.ABORT, now, unwanted=True)

    def _note(self, num_events: int, now: Seconds) -> None:
        """Some of the answer is here."""
        if self._last_at is not None:
            self._figures.next_tokens(now - self._last_at, num_events or 1, now)
        else:
            self.record.note_first(now - self.record.arrived_at)
            self._figures.first_token(now - self.record.arrived_at, now)
            if self._attempt is not None:
                self._attempt.first_at = now
        self._last_at = now
        self.record.output_tokens += num_events

    def _end(
        self,
        state: str,
        now: Seconds,
        billing: Billing | None = None,
        *,
        unwanted: bool = False,
    ) -> None:
        self.over = True
        record, attempt = self.record, self._attempt
        record.state = state
        record.last_choice = RequestId(record.id)
        if billing is not None:
            record.prompt_tokens = billing.prompt_tokens
            record.output_tokens = billing.output_tokens
            record.cached_tokens = billing.cached_tokens or 0
        if attempt is not None and self.begun:
            attempt.last_at = self._last_at
        self._figures.ended(state, record.output_tokens)
        usage = Usage(
            prompt_tokens=record.prompt_tokens if self.begun else 0,
            completion_tokens=record.output_tokens,
            cached_tokens=record.cached_tokens,
        )
        if record.ttft is not None and self._last_at is not None:
            first_at = record.arrived_at + record.ttft
            record.note_choice(first_at, self._last_at, record.output_tokens)
        self._figures.billed(usage, record, now)
        give_up, self._give_up = self._give_up, None
        if unwanted and give_up is not None:
            give_up()
        ended, self._ended = self._ended, _nobody_asks
        ended(self, billing, unwanted)


def _nobody_asks(_passage: Passage, _billing: Billing | None, _unwanted: bool) -> None:
    """It is over and said so: who was told is held no longer, so that no circle stays."""
