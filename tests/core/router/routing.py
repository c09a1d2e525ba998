"""Short words for the events of a Router, and for what to look at in its effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.router.events import (
    AttemptFailed,
    Deliver,
    Dispatch,
    ReplicaReady,
    RequestArrived,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.types import (
    FinishReason,
    Output,
    ReplicaId,
    ReportLoad,
    Request,
    RequestId,
    SamplingParams,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Policy
    from headrace.core.router.events import RouterEffect

SAMPLING = SamplingParams()
R0, R1, R2 = ReplicaId("r0"), ReplicaId("r1"), ReplicaId("r2")
FACTS = ReplicaFacts(block_size=16, num_blocks=64, max_num_seqs=8, max_num_batched_tokens=256)


def request(
    name: str,
    *,
    deadline: float | None = None,
    max_tokens: int = 4,
    chain: tuple[bytes, ...] = (),
    prompt: tuple[int, ...] = (1, 2),
    sampling: SamplingParams = SAMPLING,
) -> Request:
    return Request(
        id=RequestId(name),
        prompt=prompt,
        max_tokens=max_tokens,
        deadline=deadline,
        chain=chain,
        sampling=sampling,
    )


def arrived(*names: str, deadline: float | None = None, max_tokens: int = 4) -> RequestArrived:
    return RequestArrived(
        tuple(request(name, deadline=deadline, max_tokens=max_tokens) for name in names)
    )


def token(name: str, *tokens: int, finish: FinishReason | None = None) -> Output:
    return Output(RequestId(name), tokens or (7,), finish, 0)


def report(*, step: int, running: int = 1, seconds: float = 0.0, computed: int = 0) -> ReportLoad:
    return ReportLoad(
        step=step,
        running=running,
        waiting=0,
        waiting_tokens=0,
        kv_blocks_total=4,
        kv_blocks_free=1,
        kv_blocks_cached=0,
        prompt_tokens_total=0,
        cached_tokens_total=0,
        output_tokens_total=0,
        discarded_tokens_total=0,
        preemptions_total=0,
        step_seconds_total=seconds,
        computed_tokens_total=computed,
    )


def failed(
    name: str,
    *,
    at: ReplicaId = R0,
    code: str = "overloaded",
    retryable: bool = True,
    to_blame: bool = False,
    busy_for: float | None = None,
) -> AttemptFailed:
    return AttemptFailed(
        replica=at,
        request_id=RequestId(name),
        code=code,
        reason="the test says so",
        retryable=retryable,
        to_blame=to_blame,
        busy_for=busy_for,
    )


def ready_router(
    limits: RouterLimits | None = None,
    *replicas: ReplicaId,
    policy: Policy | None = None,
    facts: ReplicaFacts = FACTS,
    seed: int = 0,
) -> Router:
    router = Router(limits, policy, seed=seed)
    for replica in replicas or (R0,):
        router.handle(ReplicaReady(replica, facts), 0.0)
    return router


def places(effects: Sequence[RouterEffect]) -> list[tuple[str, str]]:
    """(replica, attempt) of every Dispatch."""
    return [(str(e.replica), str(e.request.id)) for e in effects if isinstance(e, Dispatch)]


def delivered(effects: Sequence[RouterEffect]) -> list[tuple[str, tuple[int, ...]]]:
    """(client's id, tokens) of every Output."""
    return [
        (str(output.request_id), output.tokens)
        for effect in effects
        if isinstance(effect, Deliver)
        for output in effect.outputs
    ]
