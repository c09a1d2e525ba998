"""FailureDetector: which replicas are to be trusted, by what one router sees of them.

Two ways to lose trust, two ways back::

    READY --silent or stuck--> SUSPECT --beats again, or a step--> READY
    READY --max_failures in a row--> EJECTED --after a while--> PROBING --success--> READY
                                        ^-------------- failure ---------'

Three failures are enough for one that never did anything well: nothing speaks for it, and the
budget that retries are paid from is small when all is new. One without connection is no outlier but
LOST, which the router hears from its link; no failure is counted.

A replica that beats is silent after ``silent_after`` without a sign of life. One that reports its
steps is stuck if it has work and does none for ``stuck_after``. Of one that does neither (foreign)
only silence towards requests that wait for their first byte is known: it is ejected for it, as
nothing would tell that it came back. Never is more than half of them ejected. Ejection with
growing times and a cap on the share follow Envoy's outlier detection. Times are this process's;
nothing here knows connections, drains or requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headrace.errors import InvariantBroken

if TYPE_CHECKING:
    from headrace.types import ReplicaId, Seconds

BEATS_TO_RETURN = 2  # one may have lain in a buffer while the replica was away
FAILURES_AT_FIRST = 3  # as many as the retries that a budget begins with
STEPS_TO_STICK = 5.0  # a step may take so many times what the model says
FORGIVEN_AFTER: float = 300.0
"""Seconds without an ejection, until the next one is short again."""


class ReplicaState(StrEnum):
    """What a router thinks of a replica. The detector knows the first four."""

    READY = "ready"
    SUSPECT = "suspect"  # silent, or no step in time: nothing is sent there, its streams moved on
    EJECTED = "ejected"  # failed too often: out for a while
    PROBING = "probing"  # ejected long enough: one request at a time shows whether it is well
    DRAINING = "draining"  # takes nothing new; its streams finish, or move on after a while
    LOST = "lost"  # no connection


_OUT = (ReplicaState.EJECTED, ReplicaState.PROBING)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """Patience of a FailureDetector; ranges and defaults as in RouterLimits."""

    silent_after: Seconds = 3.0
    stuck_after: Seconds = 10.0
    stream_silence: Seconds = 60.0
    max_failures: int = 5
    eject_for: Seconds = 10.0
    max_eject_for: Seconds = 120.0


class Workload(Protocol):
    """What the detector looks at. ``balancer.policy.ReplicaView`` is one."""

    @property
    def outstanding(self) -> int:
        """Requests there."""
        ...

    @property
    def decoding(self) -> int:
        """Of those, the ones that were answered already."""
        ...

    @property
    def progress_at(self) -> Seconds:
        """When it last did a step, had nothing to do, or got its first request."""
        ...

    @property
    def longest_step(self) -> Seconds:
        """What a full step should take."""
        ...


class Judgement(NamedTuple):
    """A change of state, and why."""

    replica: ReplicaId
    state: ReplicaState
    reason: str


@dataclass(slots=True)
class _Record:
    """What is known of one replica."""

    replica: ReplicaId
    workload: Workload
    heard_at: Seconds
    state: ReplicaState = ReplicaState.READY
    beats: bool = False
    reports: bool = False
    proven: bool = False  # some attempt there came to its proper end
    stuck: bool = False  # why it is SUSPECT
    num_beats_back: int = 0  # since it is SUSPECT
    num_failures: int = 0  # in a row
    num_ejections: int = 0  # lately
    ejected_until: Seconds = 0.0
    patient_from: Seconds = 0.0  # no time before this counts against it


class FailureDetector:
    """For one Router, which tells it what it hears and asks ``check`` when ``next_at`` has come."""

    def __init__(self, limits: HealthLimits | None = None) -> None:
        self._limits = limits or HealthLimits()
        self._records: dict[ReplicaId, _Record] = {}
        self._check_at: Seconds | None = None  # no later than the first thing that may be due
        self.num_changes = 0  # of who is known here, and of what is thought of them

    def add(self, replica: ReplicaId, workload: Workload, now: Seconds) -> None:
        """Trust a replica that is new, or started anew."""
        self._records[replica] = _Record(replica, workload, heard_at=now)
        self.num_changes += 1

    def remove(self, replica: ReplicaId) -> None:
        """Forget a replica."""
        self._records.pop(replica, None)
        self.num_changes += 1

    def state(self, replica: ReplicaId) -> ReplicaState:
        """Return what is thought of a known replica."""
        return self._records[replica].state

    def watch(self, replica: ReplicaId, now: Seconds, *, given: bool = True) -> None:
        """A replica on which no request waited was ``given`` one: from now on it must answer.

        Else what a step should take there is known anew: it may be late sooner than was thought.
        """
        record = self._records[replica]
        if given and not (record.beats or record.reports):
            record.patient_from = now
        self._arm(record, now)

    def heard(
        self, replica: ReplicaId, now: Seconds, *, report: bool = False, progress: bool = False
    ) -> Judgement | None:
        """Take a sign of life that is no heartbeat. ``progress``: a step, or nothing to do."""
        record = self._records[replica]
        record.heard_at = now
        if report:
            record.reports = True
            self._arm(record, now)
        if progress and record.state is ReplicaState.SUSPECT and record.stuck:
            return self._trust(record, now, "it does steps again")
        return None

    def beat(self, replica: ReplicaId, now: Seconds) -> Judgement | None:
        """Take a heartbeat."""
        record = self._records[replica]
        record.heard_at = now
        if not record.beats:
            record.beats = True
            self._arm(record, now)
        if record.state is not ReplicaState.SUSPECT:
            return None
        record.num_beats_back += 1
        if record.stuck or record.num_beats_back < BEATS_TO_RETURN:
            return None
        return self._trust(record, now, "it beats again")

    def succeeded(self, replica: ReplicaId, now: Seconds) -> Judgement | None:
        """An attempt there came to its proper end."""
        record = self._records[replica]
        record.num_failures, record.proven = 0, True
        if record.state is ReplicaState.PROBING:
            return self._trust(record, now, "a request succeeded")
        return None

    def failed(self, replica: ReplicaId, now: Seconds, reason: str) -> Judgement | None:
        """An attempt there failed by the replica's fault."""
        record = self._records[replica]
        record.num_failures += 1
        limit = self._limits.max_failures
        if not record.proven:
            limit = min(limit, FAILURES_AT_FIRST)
        probing = record.state is ReplicaState.PROBING
        ready = record.state is ReplicaState.READY
        if not probing and (not ready or record.num_failures < limit):
            return None
        return self._eject(record, now, f"{record.num_failures} failures in a row, last: {reason}")

    def probe_least_bad(self, now: Seconds) -> Judgement | None:
        """Bring the ejected replica that is due first to PROBING: for when nobody else is left."""
        ejected = (r for r in self._records.values() if r.state is ReplicaState.EJECTED)
        record = min(ejected, key=lambda record: record.ejected_until, default=None)
        return None if record is None else self._probe(record, now, "every replica is out")

    def next_at(self) -> Seconds | None:
        """When ``check`` wants to be called, or None."""
        return self._check_at

    def check(self, now: Seconds) -> list[Judgement]:
        """Judge by the time that has passed; nothing to do before ``next_at``."""
        due = self._check_at
        if due is None or now < due:
            return []
        if now - due > self._limits.silent_after:
            self._excuse(now)
        found = (self._judge(record, now) for record in self._records.values())
        judgements = [judgement for judgement in found if judgement is not None]
        times = (self._due_at(record) for record in self._records.values())
        self._check_at = min((time for time in times if time is not None), default=None)
        return judgements

    def check_integrity(self) -> None:
        """Raise InvariantBroken if more than half are ejected, or somebody would be forgotten."""
        out = [r for r in self._records.values() if r.state is ReplicaState.EJECTED]
        for record in self._records.values():
            due = self._due_at(record)
            if due is not None and (self._check_at is None or self._check_at > due):
                raise InvariantBroken(f"{record.replica} is due at {due}, not {self._check_at}")
        if any(record.num_ejections < 1 for record in out):
            raise InvariantBroken("ejected and not counted")

    def _excuse(self, now: Seconds) -> None:
        """We come so late that it was ourselves who slept: nobody is to blame for this time."""
        for record in self._records.values():
            record.patient_from = now

    def _judge(self, record: _Record, now: Seconds) -> Judgement | None:
        due = self._due_at(record)
        if due is None or now < due:
            return None
        if record.state is ReplicaState.EJECTED:
            return self._probe(record, now, "its time out is over")
        silent_at = self._silent_at(record)
        if silent_at is not None and now >= silent_at:
            return self._suspect(record, f"no sign of life for {now - record.heard_at:.1f} s")
        idle = now - record.workload.progress_at
        if record.beats or record.reports:
            return self._suspect(
                record, f"it has work and did no step for {idle:.1f} s", stuck=True
            )
        return self._eject(record, now, f"requests wait and nothing came for {idle:.1f} s")

    def _due_at(self, record: _Record) -> Seconds | None:
        """When time alone would change this replica's state."""
        if record.state is ReplicaState.EJECTED:
            return record.ejected_until
        if record.state is ReplicaState.SUSPECT:
            return None
        times = (self._silent_at(record), self._late_at(record))
        return min((at for at in times if at is not None), default=None)

    def _silent_at(self, record: _Record) -> Seconds | None:
        if not record.beats:
            return None
        return max(record.heard_at, record.patient_from) + self._limits.silent_after

    def _late_at(self, record: _Record) -> Seconds | None:
        workload = record.workload
        since = max(workload.progress_at, record.patient_from)
        if record.beats or record.reports:
            patience = max(self._limits.stuck_after, STEPS_TO_STICK * workload.longest_step)
            return since + patience if workload.outstanding else None
        unanswered = workload.outstanding - workload.decoding
        return since + self._limits.stream_silence if unanswered else None

    def _suspect(self, record: _Record, reason: str, *, stuck: bool = False) -> Judgement:
        record.state, record.stuck = ReplicaState.SUSPECT, stuck
        self.num_changes += 1
        record.num_beats_back = 0
        return Judgement(record.replica, record.state, reason)

    def _trust(self, record: _Record, now: Seconds, reason: str) -> Judgement:
        record.state, record.num_failures = ReplicaState.READY, 0
        self.num_changes += 1
        record.patient_from = now
        self._arm(record, now)
        return Judgement(record.replica, record.state, reason)

    def _probe(self, record: _Record, now: Seconds, reason: str) -> Judgement:
        record.state, record.patient_from = ReplicaState.PROBING, now
        self.num_changes += 1
        self._arm(record, now)
        return Judgement(record.replica, record.state, reason)

    def _eject(self, record: _Record, now: Seconds, reason: str) -> Judgement | None:
        out = sum(each.state in _OUT for each in self._records.values() if each is not record)
        if 2 * (out + 1) > len(self._records) and record.state is ReplicaState.READY:
            record.patient_from = now
            return None
        if now - record.ejected_until > FORGIVEN_AFTER:
            record.num_ejections = 0
        record.num_ejections += 1
        limits = self._limits
        seconds = min(limits.eject_for * record.num_ejections, limits.max_eject_for)
        record.state, record.ejected_until = ReplicaState.EJECTED, now + seconds
        self.num_changes += 1
        self._arm(record, now)
        return Judgement(record.replica, record.state, f"out for {seconds:.0f} s: {reason}")

    def _arm(self, record: _Record, now: Seconds) -> None:
        """See that ``next_at`` is no later than what may become of this replica."""
        due = self._due_at(record)
        if due is not None and (self._check_at is None or due < self._check_at):
            self._check_at = max(due, now)
