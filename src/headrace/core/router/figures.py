"""The load of a pool as its Router sees it: what autoscalers and pages are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.balancer.predicted_ttft import BATCHED_TOKENS, seconds_to_first_token

if TYPE_CHECKING:
    from headrace.core.balancer.policy import ReplicaView
    from headrace.core.health import ReplicaState
    from headrace.core.router.fleet import Fleet, Member
    from headrace.core.router.knowledge import KvKnowledge
    from headrace.core.router.pace import Pace
    from headrace.core.router.waiting import WaitingQueue
    from headrace.types import ReplicaId, Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFigures:
    """One replica."""

    replica: ReplicaId
    state: ReplicaState
    knowledge: KvKnowledge  # of its prefix cache
    accuracy: float | None  # of what was predicted of it lately, 0 to 1; None: too little to say
    outstanding: int  # requests of this gateway
    prefill_tokens: Tokens  # uncached, of those without a first token
    kv_used: float  # share of its blocks that running requests hold, 0 to 1
    prefill_rate: float  # prompt tokens a second that it computes when it computes; 0: not known
    computed_tokens: Tokens  # prompt tokens, since its start
    max_num_seqs: int  # requests that it runs at one time; 0: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFigures:
    """The whole pool. ``predicted_ttft`` is for a prompt of the usual length, none of it cached."""

    waiting: int
    waiting_tokens: Tokens
    predicted_ttft: Seconds | None  # None without requests lately, or without a replica
    replicas: tuple[ReplicaFigures, ...]


def pool_figures(fleet: Fleet, queue: WaitingQueue, pace: Pace, now: Seconds) -> PoolFigures:
    """Return the figures of this moment."""
    return PoolFigures(
        waiting=len(queue),
        waiting_tokens=queue.num_tokens,
        predicted_ttft=_predicted_ttft(fleet, queue, pace),
        replicas=tuple(_replica_figures(fleet, member) for member in fleet.members.values()),
    )


def _predicted_ttft(fleet: Fleet, queue: WaitingQueue, pace: Pace) -> Seconds | None:
    """The best place for one more, after an equal share of what waits."""
    views = [member.view for member in fleet.availability.taking()]
    length = pace.typical_prompt
    if length is None or not views:
        return None
    work = length + queue.num_tokens // len(views)
    return min(seconds_to_first_token(view, work, length) for view in views)


def _replica_figures(fleet: Fleet, member: Member) -> ReplicaFigures:
    view, own = member.view, member.own
    return ReplicaFigures(
        replica=view.replica,
        state=fleet.availability.state(view.replica),
        knowledge=fleet.prefixes.knowledge(view.replica),
        accuracy=fleet.prefixes.accuracy(view.replica),
        outstanding=own.outstanding,
        prefill_tokens=own.prefill_tokens,
        kv_used=kv_used(view),
        prefill_rate=prefill_rate(view),
        computed_tokens=0 if view.report is None else view.report.computed_tokens_total,
        max_num_seqs=view.facts.max_num_seqs,
    )


def kv_used(view: ReplicaView) -> float:
    """Return the share of blocks in use: by its report, else by what was sent there."""
    report, facts = view.report, view.facts
    if report is not None and report.kv_blocks_total:
        return 1.0 - report.kv_blocks_free / report.kv_blocks_total
    capacity = facts.num_blocks * facts.block_size
    return min(1.0, view.context_tokens / capacity) if capacity else 0.0


def prefill_rate(view: ReplicaView) -> float:
    """Return tokens a second in steps full of prompt; 0 before the first reports."""
    if view.report is None:
        return 0.0
    size = view.facts.max_num_batched_tokens or BATCHED_TOKENS
    seconds = view.costs.of_step(size, 0)
    return size / seconds if seconds > 0 else 0.0
