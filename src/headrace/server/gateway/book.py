"""The book of requests: a record is opened for each, and closed with one line in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.clock import wall_time
from headrace.monitoring.goodput import NO_TARGETS
from headrace.monitoring.logging import event as log_event
from headrace.monitoring.records import RequestRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.clock import Clock
    from headrace.monitoring.goodput import Targets
    from headrace.monitoring.records import Records
    from headrace.server.gateway.http.messages import ResponseContext
    from headrace.server.gateway.urgency import Urgency
    from headrace.types import PriorityClass, Seconds, Tokens

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Book:
    """Keeps ``records``. By ``class_targets`` those are measured that ask for nothing."""

    records: Records
    clock: Clock
    class_targets: Mapping[PriorityClass, Targets]

    def open(
        self,
        context: ResponseContext,
        *,
        urgency: Urgency,
        begun_at: Seconds,
        prompt_tokens: Tokens,
    ) -> RequestRecord:
        """Begin a record, when the request's tokens are known."""
        targets = urgency.targets
        if targets == NO_TARGETS:
            targets = self.class_targets[urgency.priority]
        record = RequestRecord(
            id=context.request_id,
            alias=context.client_request_id,
            unix=wall_time(),
            tenant=context.principal.tenant,
            priority=urgency.priority,
            targets=targets,
            arrived_at=context.arrived_at,
            begun_at=begun_at,
            prepared_at=self.clock.now(),
            prompt_tokens=prompt_tokens,
        )
        self.records.begin(record)
        return record

    def close(self, record: RequestRecord) -> None:
        """The answer's last byte was written, or nobody wants it any more."""
        record.done_at = now = self.clock.now()
        self.records.end(record)
        if _LOG.isEnabledFor(logging.INFO):
            log_event(
                _LOG,
                logging.INFO,
                "request done",
                id=record.shown_id,
                tenant=record.tenant,
                priority=record.priority.value,
                replica=", ".join(record.replicas),
                prompt_tokens=record.prompt_tokens,
                cached_tokens=record.cached_tokens,
                output_tokens=record.output_tokens,
                migrations=record.migrations,
                ttft=None if record.ttft is None else round(record.ttft, 6),
                seconds=round(record.seconds(now), 6),
                finish=str(record.state),
                missed=None if record.missed is None else " ".join(record.missed),
            )
