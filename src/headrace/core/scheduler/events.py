"""Events and effects of EngineCore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from headrace.machine import Tick

if TYPE_CHECKING:
    from headrace.core.scheduler.plan import StepPlan, StepResult
    from headrace.types import (
        FinishReason,
        Request,
        RequestId,
        Seconds,
        StepId,
        TokenId,
        TokenLogprobs,
        Tokens,
    )


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


class Output(NamedTuple):
    """New tokens of one request. The last Output of a request has ``finish`` set."""

    request_id: RequestId
    tokens: tuple[TokenId, ...]
    finish: FinishReason | None
    cached_tokens: Tokens  # prompt tokens found in the prefix cache when first scheduled
    logprobs: tuple[TokenLogprobs, ...] = ()
    reason: str = ""  # for a client to read, when finish is ERROR


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLoad:
    """What routers and operators want to know, at most every ``report_period``.

    Counters count from the start of the engine.
    """

    step: int
    running: int
    waiting: int
    waiting_tokens: Tokens  # prompt tokens not computed yet, cached ones not subtracted
    kv_blocks_total: int
    kv_blocks_free: int  # may be handed out now, cached content included
    kv_blocks_cached: int  # of the free ones, those whose content can still be hit
    prompt_tokens_total: int
    cached_tokens_total: int
    output_tokens_total: int
    discarded_tokens_total: int  # drawn by steps in flight for sequences that had ended
    preemptions_total: int
    step_seconds_total: Seconds


EngineEffect: TypeAlias = Execute | Emit | Reject | ReportLoad
