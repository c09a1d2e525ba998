"""ForeignLink: one foreign replica in one pool, as a gateway's Router knows replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.router.events import AttemptFailed
from headrace.errors import ReplicaLost
from headrace.server.gateway.foreign.attempt import Reports, UpstreamAttempt
from headrace.server.gateway.foreign.upstream import Call
from headrace.types import FinishReason, Output, RequestId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.server.gateway.foreign.passage import Passage, PassedRequest
    from headrace.server.gateway.foreign.upstream import Upstream
    from headrace.server.links import LinkEvents
    from headrace.types import ReplicaId, Request

ATTEMPT_MARK = "~"
"""Between a request's id and the number of an attempt; see core/router/events.py."""


class ForeignLink:
    """Implements ReplicaLink. ``passages`` are those of the pool, by the clients' request ids."""

    def __init__(
        self,
        replica: ReplicaId,
        upstream: Upstream,
        *,
        passages: Mapping[RequestId, Passage],
        events: LinkEvents,
        api_key: str,
    ) -> None:
        self._replica = replica
        self._upstream = upstream
        self._passages = passages
        self._attempts: dict[RequestId, UpstreamAttempt] = {}
        self._reports = Reports(
            replica=replica,
            events=events,
            config=upstream.config,
            clock=upstream.clock,
            forget=self._attempts.pop,
        )
        self._fields = f"host: {upstream.replica.authority}\r\n".encode()
        if api_key:
            self._fields += f"authorization: Bearer {api_key}\r\n".encode()

    @property
    def replica(self) -> ReplicaId:
        """Whose link this is."""
        return self._replica

    def submit(self, request: Request) -> None:
        """Send a passage's body, unless its client is gone or has part of an answer already."""
        passage = self._passages.get(client_id(request.id))
        if passage is None or passage.over:  # it ended while the Router moved it on
            self._reports.events.outputs(
                self._replica, (Output(request.id, (), FinishReason.ABORT, 0),)
            )
            return
        if passage.begun:
            self._refuse(request.id)
            return
        attempt = UpstreamAttempt(request.id, passage, self._reports)
        passage.hold(attempt.cancel)
        passed = passage.request
        limit = None
        if passed.stream:
            config = self._upstream.config
            limit = config.first_event_timeout + config.first_event_per_token * passed.prompt_tokens
        call = Call((self._head(passed), passed.body), attempt, first_byte_limit=limit)
        attempt.call = call
        self._attempts[request.id] = attempt
        self._upstream.send(call)

    def abort(self, request_id: RequestId) -> None:
        """Close the connection of an attempt, if it is still under way."""
        attempt = self._attempts.get(request_id)
        if attempt is not None:
            attempt.cancel()

    def want_snapshot(self) -> None:
        """It cannot tell what it has cached."""

    def _head(self, passed: PassedRequest) -> bytes:
        path = (self._upstream.replica.prefix + passed.path).encode()
        length = b"content-length: %d\r\n\r\n" % len(passed.body)
        return b"POST " + path + b" HTTP/1.1\r\n" + self._fields + passed.headers + length

    def _refuse(self, attempt_id: RequestId) -> None:
        """The Router moved it on before it knew that its answer had begun."""
        self._reports.events.failed(
            AttemptFailed(
                replica=self._replica,
                request_id=attempt_id,
                code=ReplicaLost.code,
                reason="the replica was given up after its answer had begun",
            )
        )


def client_id(attempt_id: RequestId) -> RequestId:
    """Return the client's id of an attempt."""
    return RequestId(attempt_id.partition(ATTEMPT_MARK)[0])
