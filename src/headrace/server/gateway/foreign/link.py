"""ForeignLink: one foreign replica in one pool, as a gateway's Router knows replicas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from headrace.core.router.events import AttemptFailed
from headrace.errors import ReplicaLost
from headrace.server.gateway.foreign.attempt import Reports, UpstreamAttempt
from headrace.server.gateway.foreign.config import Migration
from headrace.server.gateway.foreign.continuing import (
    CHAT_PATH,
    COMPLETE_PATH,
    Resumption,
    Verbatim,
    resume,
)
from headrace.server.gateway.foreign.editing import set_fields
from headrace.server.gateway.foreign.resuming import CannotResume, KeptStream, NothingKept
from headrace.server.gateway.foreign.upstream import Call
from headrace.types import FinishReason, Output, RequestId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.server.gateway.foreign.cards import ModelCard
    from headrace.server.gateway.foreign.passage import Passage, PassedRequest
    from headrace.server.gateway.foreign.resuming import Kept
    from headrace.server.gateway.foreign.upstream import Upstream
    from headrace.server.links import LinkEvents
    from headrace.types import ReplicaId, Request

ATTEMPT_MARK = "~"
"""Between a request's id and the number of an attempt; see core/router/events.py."""

_VERBATIM = Verbatim()
_SWITCHED_OFF = NothingKept("migration is off")
_UNABLE = NothingKept("its server cannot go on in the middle")


class ForeignLink:
    """Implements ReplicaLink. ``passages`` are those of the pool, by the clients' request ids.

    ``model`` is the pool's model as this replica calls and describes it.
    """

    def __init__(
        self,
        replica: ReplicaId,
        upstream: Upstream,
        *,
        model: ModelCard,
        passages: Mapping[RequestId, Passage],
        events: LinkEvents,
        api_key: str,
    ) -> None:
        self._replica = replica
        self._upstream = upstream
        self._model = model
        self._migration = upstream.replica.migration or upstream.config.migration
        self._passages = passages
        self._attempts: dict[RequestId, UpstreamAttempt] = {}
        self._reports = Reports(
            replica=replica,
            events=events,
            config=upstream.config,
            clock=upstream.clock,
            forget=self._attempts.pop,
        )
        self._begins: dict[str, bytes] = {}  # of requests, by path
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
        try:
            asked = self._ask(passage)
        except CannotResume as error:
            self._refuse(request.id, str(error))
            return
        attempt = UpstreamAttempt(request.id, passage, self._reports, teller=asked.teller)
        passage.hold(attempt.cancel)
        passed = passage.request
        limit = None
        if passed.stream:
            config = self._upstream.config
            limit = config.first_event_timeout + config.first_event_per_token * passed.prompt_tokens
        head = self._head(asked.path, asked.body, passed.headers)
        call = Call((head, asked.body), attempt, first_byte_limit=limit)
        attempt.call = call
        self._attempts[request.id] = attempt
        self._upstream.send(call)

    def lose(self, reason: str) -> None:
        """The replica is lost: streams that cannot go on elsewhere end, before anybody tries."""
        for attempt in list(self._attempts.values()):
            attempt.passage.check_hope(
                f"replica {self._replica} was lost: {reason}", self._upstream.clock.now()
            )

    def abort(self, request_id: RequestId) -> None:
        """Close the connection of an attempt, if it is still under way."""
        attempt = self._attempts.get(request_id)
        if attempt is not None:
            attempt.cancel()

    def want_snapshot(self) -> None:
        """It cannot tell what it has cached."""

    def _ask(self, passage: Passage) -> Resumption:
        """Return what to send: what the client sent, or what goes on from there."""
        passed, migration = passage.request, self._migration
        if passage.begun:
            sent = passage.kept.sent()
            return resume(passed.path, passed.body, sent, self._model, migration)
        passage.kept = self._keep(passed)
        body = passed.body
        if passed.model not in (None, self._model.id):
            body = set_fields(body, {"model": json.dumps(self._model.id).encode()})
        if migration is Migration.EXACT and not passage.kept.why_not:
            body = set_fields(body, {"return_token_ids": b"true"})
        return Resumption(passed.path, body, _VERBATIM)

    def _keep(self, passed: PassedRequest) -> Kept:
        """Return what keeps a stream from here, so that it may go on elsewhere."""
        config, server = self._upstream.config, self._model.server
        match self._migration:
            case Migration.OFF:
                return _SWITCHED_OFF
            case Migration.EXACT:
                able = server.tells_token_ids
            case Migration.BEST_EFFORT:
                able = passed.path != CHAT_PATH or server.continues_chats
        if passed.stream and able and passed.path in (CHAT_PATH, COMPLETE_PATH):
            return KeptStream(max_bytes=config.max_resume_bytes)
        return _UNABLE

    def _head(self, path: str, body: bytes | bytearray, headers: bytes) -> bytes:
        begin = self._begins.get(path)
        if begin is None:
            line = f"POST {self._upstream.replica.prefix}{path} HTTP/1.1\r\n".encode()
            begin = self._begins[path] = line + self._fields
        return b"%b%bcontent-length: %d\r\n\r\n" % (begin, headers, len(body))

    def _refuse(self, attempt_id: RequestId, reason: str) -> None:
        """It cannot go on here what has begun elsewhere."""
        self._reports.events.failed(
            AttemptFailed(
                replica=self._replica,
                request_id=attempt_id,
                code=ReplicaLost.code,
                reason=f"the stream broke off and cannot go on at {self._replica}: {reason}",
                retryable=True,
            )
        )


def client_id(attempt_id: RequestId) -> RequestId:
    """Return the client's id of an attempt."""
    return RequestId(attempt_id.partition(ATTEMPT_MARK)[0])
