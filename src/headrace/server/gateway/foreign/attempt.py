"""An attempt: what one replica answers to one passage, judged before it reaches the client."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from headrace.core.router.events import AttemptFailed
from headrace.errors import Overloaded, ProtocolError, ReplicaLost
from headrace.monitoring.logging import event as log_event
from headrace.server.gateway.foreign.answers import StreamJudge, judge_whole
from headrace.server.gateway.http.messages import Response
from headrace.types import FinishReason, Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.clock import Clock
    from headrace.server.gateway.foreign.answers import Billing
    from headrace.server.gateway.foreign.config import ForeignConfig
    from headrace.server.gateway.foreign.continuing import Teller
    from headrace.server.gateway.foreign.passage import Passage
    from headrace.server.gateway.foreign.reading import ResponseHead
    from headrace.server.gateway.foreign.upstream import Call
    from headrace.server.links import LinkEvents
    from headrace.types import ReplicaId, RequestId, Seconds

_LOG = logging.getLogger(__name__)
_STATUSES = frozenset(HTTPStatus)
_EVENTS = b"text/event-stream"
_REPLICA_FAULTS = frozenset((408, 500, 502, 503, 504))
_DEFAULT_BUSY_SECONDS = 1.0
_MAX_BUSY_SECONDS = 60.0
_MAX_SAID_BYTES = 200  # quoted of a refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Where attempts at one replica say how they went. ``forget`` is called when one is over."""

    replica: ReplicaId
    events: LinkEvents
    config: ForeignConfig
    clock: Clock
    forget: Callable[[RequestId], object]


class UpstreamAttempt:
    """Implements Receiver: one stay of a passage at one replica.

    ``teller`` says how the events of a stream are told to the client of ``passage``.
    """

    def __init__(
        self,
        attempt_id: RequestId,
        passage: Passage,
        reports: Reports,
        *,
        teller: Teller,
    ) -> None:
        self.id = attempt_id
        self.call: Call | None = None
        self.is_over = False
        self._teller = teller
        self._is_answered = False  # the Router knows that its first byte came
        self.passage = passage
        self._reports = reports
        self._head: ResponseHead | None = None
        self._judge: StreamJudge | None = None  # of a stream
        self._whole = bytearray()  # the body of an answer that is no stream

    def cancel(self) -> None:
        """Nobody wants it any more. Idempotent."""
        if self.is_over:
            return
        call = self.call
        self._close()
        if call is not None:
            call.cancel()

    def head(self, head: ResponseHead) -> None:
        """See Receiver."""
        self._head = head
        if head.status == 200 and self.passage.request.stream:
            if head.media_type != _EVENTS:
                raise ProtocolError(f"a stream was asked for and it sent {head.media_type[:80]!r}")
            config = self._reports.config
            self._judge = StreamJudge(
                max_event_bytes=config.max_event_bytes, check_ids=config.check_ids
            )

    def body(self, data: bytes) -> None:
        """See Receiver."""
        if self.is_over:
            return
        if self._judge is not None:
            self._stream(self._judge, data)
            return
        self._whole += data
        limit = self._reports.config.max_answer_bytes
        if len(self._whole) > limit:
            raise ProtocolError(f"its answer is over {limit} bytes")

    def end(self) -> None:
        """See Receiver."""
        if self.is_over:
            return
        if self._judge is not None:
            self._judge.end()
        else:
            self._end_whole(bytes(self._whole))

    def failed(self, reason: str, *, refused: bool = False) -> None:
        """See Receiver."""
        if not self.is_over:
            self._fail(f"replica {self._reports.replica}: {reason}", to_blame=True)

    def _stream(self, judge: StreamJudge, data: bytes) -> None:
        passage, head = self.passage, self._head
        assert head is not None
        before = judge.num_events
        events = judge.take(data)
        if not events:
            return
        events = self._teller.take(events)
        content_type = head.headers[b"content-type"]
        number, now = judge.num_events - before, self._reports.clock.now()
        if judge.is_done:
            billing = self._teller.billing(judge.billing)
            self._succeed(billing)
            passage.complete(events, content_type, number, now, billing)
            return
        if not self._is_answered:
            self._is_answered = True
            self._reports.events.outputs(self._reports.replica, (Output(self.id, (), None, None),))
        if events:
            passage.send(events, content_type, number, now)

    def _end_whole(self, body: bytes) -> None:
        head = self._head
        assert head is not None
        status = head.status
        if status == 429 or (status == 503 and b"retry-after" in head.headers):
            self._fail_busy(status, head.headers.get(b"retry-after", b""))
        elif status in _REPLICA_FAULTS or not 200 <= status < 500 or 300 <= status < 400:
            reason = f"replica {self._reports.replica} answered with status {status}"
            self._fail(reason, to_blame=True)
        elif self.passage.begun:
            said = body[:_MAX_SAID_BYTES].decode(errors="replace")
            reason = f"replica {self._reports.replica} would not go on (status {status}): {said}"
            self._fail(reason, to_blame=False, is_final=True)
        else:
            billing = judge_whole(body) if status == 200 else None
            self._succeed(billing)
            content_type = head.headers.get(b"content-type", b"application/json")
            response = Response(_known(status), body, content_type)
            self.passage.reply(response, billing, self._reports.clock.now())

    def _close(self) -> None:
        self.is_over = True
        self.call = None  # which knows this one
        self._reports.forget(self.id)

    def _succeed(self, billing: Billing | None) -> None:
        self._close()
        cached = billing.cached_tokens if billing else None
        self._reports.events.outputs(
            self._reports.replica, (Output(self.id, (), FinishReason.STOP, cached),)
        )

    def _fail_busy(self, status: int, retry_after: bytes) -> None:
        self._close()
        self._reports.events.failed(
            AttemptFailed(
                replica=self._reports.replica,
                request_id=self.id,
                code=Overloaded.code,
                reason=f"replica {self._reports.replica} is busy (status {status})",
                retryable=True,
                busy_for=_busy_seconds(retry_after),
            )
        )

    def _fail(self, reason: str, *, to_blame: bool, is_final: bool = False) -> None:
        self._close()
        why_not = self.passage.kept.why_not if self.passage.begun else ""
        if why_not:
            reason += f"; the stream cannot go on elsewhere: {why_not}"
        log_event(_LOG, logging.WARNING, "attempt failed", request=self.id, reason=reason)
        self._reports.events.failed(
            AttemptFailed(
                replica=self._reports.replica,
                request_id=self.id,
                code=ReplicaLost.code,
                reason=reason,
                retryable=not is_final and not why_not,
                to_blame=to_blame,
            )
        )


def _known(status: int) -> int:
    """An unknown status means the same as its class's first (RFC 9110 section 15)."""
    return status if status in _STATUSES else status // 100 * 100


def _busy_seconds(retry_after: bytes) -> Seconds:
    """Read a Retry-After in seconds; dates are rare here and count as the default."""
    text = retry_after.strip()
    if not text.isdigit() or len(text) > 9:
        return _DEFAULT_BUSY_SECONDS
    return min(max(float(text), _DEFAULT_BUSY_SECONDS), _MAX_BUSY_SECONDS)
