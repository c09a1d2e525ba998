"""StepJournal: every event of an engine core and every decision, in a bounded ring of memory.

An ``AsyncioDriver``'s ``observe``. Entries lie in two segments; each begins with an **anchor**, the
core's whole state as it was then (freezing.py), so that the core can be set up again and be told
the same events: it must decide the same (step_replay.py). When a segment is full the older one is
dropped. Where state is too large for half the room, or cannot be frozen, a segment has no anchor:
its decisions can be read and not replayed.

An entry is msgpack, of some 50 bytes and 4 for each token that was drawn; a prompt takes 2 to 5
bytes a token. Log-probabilities are left out: nothing is decided by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, assert_never
from zlib import compress

import msgspec

from headrace.core.kvcache.transfers import TierChanged, Transfer, TransferDone
from headrace.core.scheduler.events import (
    Abort,
    Emit,
    Execute,
    Incident,
    KvChanged,
    Reject,
    ReportLoad,
    SnapshotWanted,
    StepDone,
    StepFailed,
    Submit,
)
from headrace.errors import HeadraceError
from headrace.machine import Tick
from headrace.monitoring.freezing import FreezeError, freeze
from headrace.types import Request, Seconds, StepId, TokenId

if TYPE_CHECKING:
    from headrace.core.scheduler.engine_core import EngineCore
    from headrace.core.scheduler.events import EngineEffect, EngineEvent
    from headrace.core.scheduler.plan import Row

FORMAT = "headrace-journal-1"
NUM_SEGMENTS = 2
FULL = 0.75
"""Of a segment's room: the next one is begun as soon as that is convenient."""

BUSY_ANCHOR_BLOCKS = 2048
"""With more blocks, state is frozen only while the engine is idle: it takes some 40 ms for a
thousand."""

_encode = msgspec.msgpack.Encoder().encode


_Ids: TypeAlias = tuple[int, ...]
_Notes: TypeAlias = tuple[int, int, int, int, int, _Ids, _Ids, _Ids]  # StepNotes


class StepDecision(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A step of ``num_rows``. ``rows`` are, in steps with chunks of prompts, those of more than one
    token, as (sequence, start, tokens); ``ends`` are sequences that run no more."""

    step: StepId
    num_rows: int
    rows: list[tuple[int, int, int]]
    ends: _Ids
    notes: _Notes


class ToldDecision(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Anything else that was decided: its kind, whom it concerns, and why."""

    kind: str
    subject: str
    reason: str


Decision: TypeAlias = StepDecision | ToldDecision


class SubmitEntry(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """See Submit; the chain of digests is made again from the prompt."""

    now: Seconds
    decisions: list[Decision]
    request: Request


class DoneEntry(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """See StepDone."""

    now: Seconds
    decisions: list[Decision]
    step: StepId
    seconds: Seconds
    tokens: Sequence[TokenId | None]
    more: tuple[tuple[int, tuple[TokenId, ...]], ...]
    failures: tuple[tuple[int, str], ...]


class FailedEntry(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """See StepFailed."""

    now: Seconds
    decisions: list[Decision]
    step: StepId
    reason: str


class AbortEntry(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """See Abort."""

    now: Seconds
    decisions: list[Decision]
    request: str


class OtherEntry(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A tick; with ``snapshot_to``, see SnapshotWanted."""

    now: Seconds
    decisions: list[Decision]
    snapshot_to: str | None


class TierEntry(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """See TransferDone (``number`` is not None), and TierChanged."""

    now: Seconds
    decisions: list[Decision]
    number: int | None
    num_done: int = 0
    reads: tuple[tuple[int, int, Seconds], ...] = ()
    tier: int = 0
    stored: tuple[bytes, ...] = ()
    dropped: tuple[bytes, ...] = ()
    counts: tuple[int, int, int] = (0, 0, 0)  # used_bytes, quarantined, errors


JournalLine: TypeAlias = SubmitEntry | DoneEntry | FailedEntry | AbortEntry | OtherEntry | TierEntry


class Segment(msgspec.Struct):
    """``anchor``: nodes as compressed msgpack, empty if the core could not be frozen."""

    anchor: bytes
    lines: list[bytes]


class JournalDump(msgspec.Struct, frozen=True, kw_only=True):
    """A journal's file. It holds prompts and generated tokens: keep it as you keep those."""

    format: str
    version: str
    python: str
    replica: str
    unix: float
    reason: str
    segments: list[bytes]  # msgpack of Segment, oldest first


class StepJournal:
    """Observes ``core``, which is fresh or idle, and keeps at most about ``max_bytes``."""

    def __init__(self, core: EngineCore, *, max_bytes: int) -> None:
        self._core = core
        self._room = max_bytes // NUM_SEGMENTS
        self._segments: list[Segment] = []
        self._num_bytes = 0  # of the newest
        self.error = ""  # why the newest segment has no anchor
        self._begin()

    def observe(self, event: EngineEvent, now: Seconds, effects: Sequence[EngineEffect]) -> None:
        """Write down one event, and what came of it."""
        line = _encode(self._line(event, now, effects))
        self._segments[-1].lines.append(line)
        self._num_bytes += len(line)
        if self._num_bytes > self._room:
            self._begin(freezes=False)
        elif self._num_bytes > FULL * self._room and self._may_pause():
            self._begin()

    def segments(self) -> list[bytes]:
        """Return all that is kept, for a JournalDump."""
        return [_encode(segment) for segment in self._segments]

    def decisions(self, effects: Sequence[EngineEffect]) -> list[Decision]:
        """Return what was decided, as it is written down."""
        found: list[Decision] = []
        for effect in effects:
            match effect:
                case Execute(plan, notes):
                    rows = _chunks(plan.rows) if notes.num_prefill else []
                    found.append(StepDecision(plan.step_id, len(plan.rows), rows, plan.ends, notes))
                case Emit() | ReportLoad():
                    pass
                case Reject(request_id, code, reason):
                    found.append(ToldDecision("reject", request_id, f"{code}: {reason}"))
                case Incident(kind, reason, request_id):
                    found.append(ToldDecision(kind.value, request_id or "", reason))
                case KvChanged(number, stored, removed):
                    found.append(
                        ToldDecision("cache", str(number), f"{len(stored)}-{len(removed)}")
                    )
                case Transfer(number=number, direction=direction, digests=digests):
                    way = f"{direction.name.lower()} {len(digests)}"
                    found.append(ToldDecision("transfer", str(number), way))
                case _:
                    pass
        return found

    def _begin(self, *, freezes: bool = True) -> None:
        anchor = b""
        if freezes:
            try:
                anchor = compress(_encode(freeze(self._core)), 1)
                self.error = ""
            except FreezeError as error:
                self.error = str(error)
        if len(anchor) > self._room // 2:
            self.error = f"the engine's state takes {len(anchor)} bytes"
            anchor = b""
        self._segments = [*self._segments[1 - NUM_SEGMENTS :], Segment(anchor, [])]
        self._num_bytes = len(anchor)

    def _may_pause(self) -> bool:
        scheduler = self._core.scheduler
        is_idle = not scheduler.in_flight and not len(scheduler.waiting)
        return is_idle or scheduler.kv.ledger.num_usable <= BUSY_ANCHOR_BLOCKS

    def _line(
        self, event: EngineEvent, now: Seconds, effects: Sequence[EngineEffect]
    ) -> JournalLine:
        decisions = self.decisions(effects)
        match event:
            case StepDone(step_id, result):
                drawn = (result.tokens, result.more, result.failures)
                return DoneEntry(now, decisions, step_id, result.seconds, *drawn)
            case Submit(request):
                return SubmitEntry(now, decisions, replace(request, chain=()))
            case StepFailed(step_id, reason):
                return FailedEntry(now, decisions, step_id, reason)
            case Abort(request_id):
                return AbortEntry(now, decisions, request_id)
            case TransferDone():
                reads = tuple((read.tier, *read[1:]) for read in event.reads)
                return TierEntry(now, decisions, event.number, event.num_done, reads)
            case TierChanged():
                return TierEntry(
                    now,
                    decisions,
                    None,
                    tier=event.tier,
                    stored=event.stored,
                    dropped=event.dropped,
                    counts=(event.used_bytes, event.quarantined, event.errors),
                )
            case SnapshotWanted(to):
                return OtherEntry(now, decisions, to)
            case Tick():
                return OtherEntry(now, decisions, None)
            case _:
                assert_never(event)


def _chunks(rows: tuple[Row, ...]) -> list[tuple[int, int, int]]:
    return [(row.sequence, row.start, row.num_tokens) for row in rows if row.num_tokens > 1]


class NoStepJournal:
    """Keeps nothing."""

    error = ""

    def observe(self, event: EngineEvent, now: Seconds, effects: Sequence[EngineEffect]) -> None:
        """See StepJournal."""

    def segments(self) -> list[bytes]:
        """See StepJournal."""
        return []


class JournalError(HeadraceError):
    """A file that is no journal, or one that this version cannot replay."""
