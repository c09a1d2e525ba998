"""Events and effects of EngineCore."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from headrace.core.kvcache.transfers import TierChanged, Transfer, TransferDone
from headrace.core.scheduler.notes import NO_NOTES, StepNotes
from headrace.machine import Tick
from headrace.types import Output, ReportLoad

if TYPE_CHECKING:
    from headrace.core.scheduler.plan import StepPlan, StepResult
    from headrace.types import BlockKey, Request, RequestId, Seconds, StepId


@dataclass(frozen=True, slots=True)
class Submit:
    """A request arrives. Its ``deadline`` is already on this process's clock."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """Nobody wants this request any more. Unknown ids are ignored (M6)."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class StepDone:
    """The executor finished a step. Steps finish in the order in which they were executed."""

    step_id: StepId
    result: StepResult


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The executor could not run a step: every request with a row in it fails."""

    step_id: StepId
    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """Somebody (``to`` is the shell's name for it) missed changes of the prefix cache."""

    to: str


EngineEvent: TypeAlias = (
    Submit | Abort | StepDone | StepFailed | SnapshotWanted | TierChanged | TransferDone | Tick
)


@dataclass(frozen=True, slots=True)
class Execute:
    """Run this step; answer with StepDone or StepFailed. ``notes`` say why it is as it is."""

    plan: StepPlan
    notes: StepNotes = NO_NOTES


@dataclass(frozen=True, slots=True)
class Emit:
    """All tokens that one step produced."""

    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """A request that is not served here. ``code`` is one of errors.py.

    ``retry_after``: seconds until asking again makes sense, where that is known.
    """

    request_id: RequestId
    code: str
    reason: str
    retry_after: Seconds | None = None


class IncidentKind(StrEnum):
    """What went wrong in an engine that goes on."""

    QUARANTINE = "quarantine"  # blocks that do not fit the books are out of use
    STALL = "stall"  # nothing could be planned
    LIVELOCK = "livelock"  # steps ran, and nobody got further


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that must not be, and what was given up for the rest to go on; for operators."""

    kind: IncidentKind
    reason: str
    request_id: RequestId | None  # that was in the way
    num_blocks: int


@dataclass(frozen=True, slots=True)
class KvChanged:
    """What the prefix cache gained and lost since the last one.

    ``number`` counts these effects from 1 without a gap: whoever misses one asks for a snapshot.
    No key is in both tuples: what came and went again within one event is in neither.
    """

    number: int
    stored: tuple[BlockKey, ...]
    removed: tuple[BlockKey, ...]


@dataclass(frozen=True, slots=True)
class KvSnapshot:
    """All content of the prefix cache, after change ``number``."""

    to: str
    number: int
    keys: tuple[BlockKey, ...]


__all__ = [
    "Abort",
    "Emit",
    "EngineEffect",
    "EngineEvent",
    "Execute",
    "Incident",
    "IncidentKind",
    "KvChanged",
    "KvSnapshot",
    "Output",
    "Reject",
    "ReportLoad",
    "SnapshotWanted",
    "StepDone",
    "StepFailed",
    "Submit",
    "TierChanged",
    "Transfer",
    "TransferDone",
]

EngineEffect: TypeAlias = (
    Execute | Emit | Reject | ReportLoad | KvChanged | KvSnapshot | Transfer | Incident
)
