"""What is kept of each client request: times, places and counts, never a word of its text.

Times are on the clock of the process that keeps them. A record costs a few writes for each
request and attempt, none for a token.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from headrace.monitoring.goodput import NO_TARGETS, Pace, Targets
from headrace.monitoring.shapes import RequestRow
from headrace.types import PriorityClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.core.balancer.policy import Choice
    from headrace.types import EngineTiming, ReplicaId, RequestId, Seconds, Tokens

MAX_FINISHED: Final = 2000
WAITING: Final = "waiting"
RUNNING: Final = "running"
_COMPLETIONS: Final = ("chatcmpl", "cmpl")  # what completion ids begin with


@dataclass(slots=True)
class Attempt:
    """One stay of one choice at one replica."""

    choice: Choice
    policy: str
    dispatched_at: Seconds
    prompt_tokens: Tokens = 0  # what it began with, tokens of earlier attempts included
    timing: EngineTiming | None = None
    cached_tokens: Tokens = 0
    first_at: Seconds | None = None  # its first token
    last_at: Seconds | None = None  # its last token; set when the attempt is over
    given_up_at: Seconds | None = None  # None: it ended well, or goes on
    reason: str = ""  # why it was given up

    @property
    def replica(self) -> ReplicaId:
        """Where it is."""
        return self.choice.replica


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One client request. ``alias`` is the id that its client gave it, if it did.

    ``choices`` holds the attempts of each choice, by the choice's id; a client request for one
    choice has one list.
    """

    id: str
    alias: str
    unix: float
    tenant: str
    arrived_at: Seconds  # its last byte
    begun_at: Seconds  # its work here
    prepared_at: Seconds  # its tokens were known
    prompt_tokens: Tokens
    priority: PriorityClass = PriorityClass.STANDARD
    targets: Targets = NO_TARGETS
    missed: tuple[str, ...] | None = None  # of its targets, at its end; None: it is not counted
    choices: dict[RequestId, list[Attempt]] = field(default_factory=dict)
    state: str = WAITING  # RUNNING, then a finish reason or an error code
    ttft: Seconds | None = None
    cached_tokens: Tokens = 0
    output_tokens: Tokens = 0
    slowest_ttft: Seconds | None = None  # of all choices
    slowest_itl: Seconds | None = None  # mean of the choice where it is longest
    last_choice: RequestId | None = None  # the one that ended last
    done_at: Seconds | None = None  # its answer's last byte was written

    @property
    def shown_id(self) -> str:
        """The id in the answer's ``x-request-id``."""
        return self.alias or self.id

    @property
    def attempts(self) -> Iterator[Attempt]:
        """All, choice by choice."""
        return (attempt for attempts in self.choices.values() for attempt in attempts)

    @property
    def migrations(self) -> int:
        """Attempts that were given up and followed by another."""
        return sum(max(0, len(attempts) - 1) for attempts in self.choices.values())

    @property
    def replicas(self) -> list[ReplicaId]:
        """Where it was, in order, each once."""
        return list(dict.fromkeys(attempt.replica for attempt in self.attempts))

    def pace(self, now: Seconds) -> Pace:
        """Its times, as targets are compared with them."""
        return Pace(self.seconds(now), self.slowest_ttft, self.slowest_itl)

    def note_first(self, ttft: Seconds) -> None:
        """A choice has its first token."""
        self.ttft = ttft if self.ttft is None else min(self.ttft, ttft)
        self.slowest_ttft = max(self.slowest_ttft or 0.0, ttft)

    def note_choice(self, first: Seconds, last: Seconds, num_tokens: Tokens) -> None:
        """A choice is over whose first and last tokens came at these times."""
        if num_tokens > 1:
            self.slowest_itl = max(self.slowest_itl or 0.0, (last - first) / (num_tokens - 1))

    def seconds(self, now: Seconds) -> Seconds:
        """Since it arrived, until it was done."""
        return (now if self.done_at is None else self.done_at) - self.arrived_at


class Records:
    """Requests under way and the last ones that ended, found by any of their ids."""

    def __init__(self, *, max_finished: int = MAX_FINISHED) -> None:
        self._live: dict[str, RequestRecord] = {}
        self._finished: deque[RequestRecord] = deque()
        self._max_finished = max_finished
        self._by_id: dict[str, RequestRecord] = {}
        self._by_alias: dict[str, RequestRecord] = {}  # of several with one alias the latest

    def __len__(self) -> int:
        """Records kept."""
        return len(self._live) + len(self._finished)

    def begin(self, record: RequestRecord) -> None:
        """Keep a request; its id is new."""
        self._live[record.id] = record
        self._by_id[record.id] = record
        if record.alias:
            self._by_alias[record.alias] = record

    def end(self, record: RequestRecord) -> None:
        """The request is done. The oldest such record makes room."""
        del self._live[record.id]
        self._finished.append(record)
        if len(self._finished) > self._max_finished:
            self._forget(self._finished.popleft())

    def find(self, request_id: str) -> RequestRecord | None:
        """Return the request of an id: its own, its client's, or that of its completion."""
        prefix, _, rest = request_id.partition("-")
        own = rest if prefix in _COMPLETIONS else request_id
        found = self._by_id.get(own.partition("#")[0])
        return found or self._by_alias.get(request_id)

    def newest(self, limit: int) -> Iterator[RequestRecord]:
        """Yield requests under way, then ended ones, the latest first."""
        live = islice(reversed(self._live.values()), limit)
        yield from live
        yield from islice(reversed(self._finished), max(0, limit - len(self._live)))

    def _forget(self, record: RequestRecord) -> None:
        del self._by_id[record.id]
        if self._by_alias.get(record.alias) is record:
            del self._by_alias[record.alias]


def request_row(record: RequestRecord, now: Seconds) -> RequestRow:
    """Return a request as lists show it."""
    return RequestRow(
        id=record.shown_id,
        unix=record.unix,
        state=record.state,
        replica=", ".join(record.replicas),
        tenant=record.tenant,
        priority=record.priority.value,
        missed=None if record.missed is None else ", ".join(record.missed),
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        migrations=record.migrations,
        ttft=record.ttft,
        seconds=record.seconds(now),
    )
