"""Figures: what a run comes to, as structs for JSON. Pure: the same run gives the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.twin.cluster import Cluster
    from headrace.twin.groups import Groups
    from headrace.twin.pool import Place
    from headrace.twin.traces.arrivals import Trace
    from headrace.types import ReplicaId, Seconds

FORMAT_VERSION = 1


class Distribution(Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class TraceFigures(Struct, frozen=True, kw_only=True):
    """What was asked. ``seconds``: from the first arrival to the last."""

    name: str
    requests: int
    seconds: float
    prompt_tokens: int
    output_tokens: int


class SetupFigures(Struct, frozen=True, kw_only=True):
    """On what."""

    model: str
    gpu: str
    tp: int
    precision: str
    kv_tokens: int  # that one replica's cache holds
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    replicas: int
    floor: int
    ceiling: int
    start_seconds: float
    policy: str
    kills: list[str]
    slows: list[str]
    delay_ms: float
    jitter_ms: float
    seed: int
    concurrency: int | None


class ReplicaFigures(Struct, frozen=True, kw_only=True):
    """One replica, all its lives together."""

    replica: str
    requests: int  # sent there, migrated ones too
    steps: int
    busy_share: float  # of its seconds, in which it computed
    seconds: float  # from its start to its end, or to the end of the run


class ScalingFigures(Struct, frozen=True, kw_only=True):
    """A decision, or what became of it."""

    at: float
    what: str
    reason: str


class GroupFigures(Struct, frozen=True, kw_only=True):
    """Requests of one class and tenant that began in the window, rates over its seconds."""

    priority: str
    tenant: str
    requests: int
    completed: int
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    output_tokens_per_s: float
    with_targets: int
    within_targets: int
    missed: dict[str, int]  # by target; refused, failed
    goodput_per_s: float  # within targets


class Figures(Struct, frozen=True, kw_only=True):
    """A run. Rates are per second of its ``seconds``, from the first arrival to the last end."""

    trace: TraceFigures
    setup: SetupFigures
    seconds: float
    requests: int
    completed: int
    failed: int
    failures: dict[str, int]  # by code
    wrong_tokens: int  # lost, repeated or another request's
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    cached_share: float  # of prompt tokens
    kv_used_mean: float  # share of all KV blocks that running requests hold
    kv_used_max: float
    busy_share: float  # of all replica-seconds
    imbalance: float  # busiest replica's busy seconds over the mean
    migrations: int  # streams that went on elsewhere
    retries: int  # requests that began again elsewhere
    hedges: int  # requests that waited in vain and were moved
    replica_seconds: float
    gpu_seconds: float
    replicas: list[ReplicaFigures]
    scaling: list[ScalingFigures]
    groups: list[GroupFigures]
    format_version: int = FORMAT_VERSION


def figures_of(cluster: Cluster, trace: Trace) -> Figures:
    """Reduce a run that has ended."""
    ledger, front, pool = cluster.clients.ledger, cluster.front, cluster.pool
    end = cluster.simulator.now
    seconds = max(end - (trace.arrivals[0].at if cluster.config.concurrency is None else 0), 1e-9)
    dispatched = front.dispatched
    rows = [_replica(name, place, dispatched[name], end) for name, place in pool.places.items()]
    paid = sum(row.seconds for row in rows)
    busy = [row.busy_share * row.seconds for row in rows]
    mean_busy = sum(busy) / len(busy)
    return Figures(
        trace=trace_figures(trace),
        setup=_setup(cluster),
        seconds=_round(seconds),
        requests=ledger.num_requests,
        completed=ledger.num_completed,
        failed=ledger.failures.total(),
        failures=dict(sorted(ledger.failures.items())),
        wrong_tokens=ledger.tokens.wrong,
        ttft_ms=distribution(ledger.ttft),
        itl_ms=distribution(ledger.itl),
        e2e_ms=distribution(ledger.e2e),
        prompt_tokens_per_s=_round(ledger.tokens.prompt / seconds),
        output_tokens_per_s=_round(ledger.tokens.output / seconds),
        cached_share=_round(ledger.tokens.cached / max(1, ledger.tokens.prompt)),
        kv_used_mean=_round(sum(cluster.kv_used) / max(1, len(cluster.kv_used))),
        kv_used_max=_round(max(cluster.kv_used, default=0.0)),
        busy_share=_round(sum(busy) / max(paid, 1e-9)),
        imbalance=_round(max(busy) / mean_busy) if mean_busy else 1.0,
        migrations=front.migrations,
        retries=front.retries,
        hedges=front.hedges,
        replica_seconds=_round(paid),
        gpu_seconds=_round(paid * cluster.config.deployment.tp),
        replicas=rows,
        scaling=[
            ScalingFigures(at=_round(at), what=what, reason=reason)
            for at, what, reason in pool.timeline
        ],
        groups=group_figures(cluster.clients.groups, begin=end - seconds, end=end),
    )


def group_figures(groups: Groups, *, begin: Seconds, end: Seconds) -> list[GroupFigures]:
    """Return every group's figures; a run lasts from ``begin`` to ``end``."""
    window = groups.window
    seconds = max(min(end, window.end) - max(begin, window.begin), 1e-9)
    return [
        GroupFigures(
            priority=key.priority.value,
            tenant=key.tenant,
            requests=group.requests,
            completed=group.completed,
            ttft_ms=distribution(group.ttft),
            itl_ms=distribution(group.itl),
            e2e_ms=distribution(group.e2e),
            output_tokens_per_s=_round(group.output_tokens / seconds),
            with_targets=group.with_targets,
            within_targets=group.within_targets,
            missed=dict(sorted(group.missed.items())),
            goodput_per_s=_round(group.within_targets / seconds),
        )
        for key, group in groups.rows()
    ]


def to_json(figures: Figures | Sequence[Figures]) -> bytes:
    """Encode, readable, keys in a fixed order, a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n"


def distribution(seconds: Sequence[float]) -> Distribution | None:
    """Describe times given in seconds; None if there are none."""
    if not seconds:
        return None
    values = np.asarray(seconds, np.float64) * 1000
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    return Distribution(
        mean=_round(float(values.mean())),
        p50=_round(p50),
        p95=_round(p95),
        p99=_round(p99),
        max=_round(float(values.max())),
    )


def trace_figures(trace: Trace) -> TraceFigures:
    """Describe a trace."""
    return TraceFigures(
        name=trace.name,
        requests=len(trace.arrivals),
        seconds=_round(trace.seconds),
        prompt_tokens=sum(arrival.prompt_tokens for arrival in trace.arrivals),
        output_tokens=sum(arrival.max_tokens for arrival in trace.arrivals),
    )


def _setup(cluster: Cluster) -> SetupFigures:
    config, spec = cluster.config, cluster.spec
    deployment, pool, scheduler = config.deployment, config.pool, config.scheduler
    return SetupFigures(
        model=deployment.model.name,
        gpu=deployment.gpu.name,
        tp=deployment.tp,
        precision=deployment.precision.value,
        kv_tokens=spec.num_blocks * spec.block_size,
        block_size=spec.block_size,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        replicas=pool.replicas,
        floor=pool.floor,
        ceiling=pool.ceiling,
        start_seconds=pool.start_seconds,
        policy=config.policy,
        kills=[f"{kill.replica}@{kill.at:g}s" for kill in config.kills],
        slows=[f"{slow.replica}x{slow.factor:g}@{slow.at:g}s" for slow in config.slows],
        delay_ms=config.network.seconds * 1000,
        jitter_ms=config.network.jitter * 1000,
        seed=config.seed,
        concurrency=config.concurrency,
    )


def _replica(name: ReplicaId, place: Place, requests: int, end: Seconds) -> ReplicaFigures:
    seconds = (end if place.until is None else place.until) - place.since
    busy, steps = place.busy_seconds, place.num_steps
    if place.life is not None:
        busy += place.life.process.device.busy_seconds
        steps += place.life.process.device.num_steps
    return ReplicaFigures(
        replica=name,
        requests=requests,
        steps=steps,
        busy_share=_round(busy / seconds) if seconds else 0.0,
        seconds=_round(seconds),
    )


def _round(value: float) -> float:
    """Six digits are more than a model knows."""
    return float(f"{value:.6g}")
