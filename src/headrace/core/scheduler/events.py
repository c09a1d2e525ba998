"""Events and effects of EngineCore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from headrace.machine import Tick
from headrace.types import Output, ReportLoad

if TYPE_CHECKING:
    from headrace.core.scheduler.plan import StepPlan, StepResult
    from headrace.types import Request, RequestId, StepId


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


EngineEvent: TypeAlias = Submit | Abort | StepDone | StepFailed | Tick


@dataclass(frozen=True, slots=True)
class Execute:
    """Run this step; answer with StepDone or StepFailed."""

    plan: StepPlan


@dataclass(frozen=True, slots=True)
class Emit:
    """All tokens that one step produced."""

    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """A request that can never be served here. ``code`` is one of errors.py."""

    request_id: RequestId
    code: str
    reason: str


__all__ = [
    "Abort",
    "Emit",
    "EngineEffect",
    "EngineEvent",
    "Execute",
    "Output",
    "Reject",
    "ReportLoad",
    "StepDone",
    "StepFailed",
    "Submit",
]

EngineEffect: TypeAlias = Execute | Emit | Reject | ReportLoad
