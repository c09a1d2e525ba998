"""SimulationConfig: all that a simulation depends on, besides the trace and the code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.router.gossip import GOSSIP_PERIOD
from headrace.core.router.machine import RouterLimits
from headrace.core.scheduler.config import SchedulerConfig
from headrace.monitoring.goodput import NO_TARGETS, Targets
from headrace.twin.network import Delay

if TYPE_CHECKING:
    from headrace.core.costs.roofline import Deployment
    from headrace.twin.groups import Window
    from headrace.types import Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """At ``at`` seconds the replica of that number dies, without a word."""

    replica: int
    at: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """From ``at`` seconds on every step of that replica takes ``factor`` times as long (a gray
    failure): it beats, it answers, and nobody is told. A new life of it is as quick as ever."""

    replica: int
    factor: float
    at: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """How many replicas, and what a life of one is like."""

    replicas: int = 1  # when the trace begins, all of them ready
    floor: int = 1
    ceiling: int = 1
    start_seconds: Seconds = 40.0
    """From the decision to ready. 37 s (tuned) to 91 s were published for a 32B model on an
    H100 (llm-d's proposal on cold starts)."""
    restart_pause: Seconds = 1.0  # as the supervisor's first pause
    detect_seconds: Seconds = 0.01
    """From a death to a reset connection at the gateway, on top of the network's delay."""
    drain_seconds: Seconds = 60.0  # then streams of a draining replica go on elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """One cluster under one workload."""

    deployment: Deployment
    pool: Pool
    policy: str = "predicted_ttft"
    gateways: int = 1
    gossip_period: Seconds | None = GOSSIP_PERIOD  # None: they tell each other nothing
    max_concurrent: int = 0  # open requests of one tenant, as a key's limit; 0: any number
    seed: int = 0
    block_size: Tokens = 16
    scheduler: SchedulerConfig = field(
        default_factory=lambda: SchedulerConfig(
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            max_num_waiting=1 << 20,
            max_steps_in_flight=2,
            share_partial=False,
        )
    )
    """As GPU servers are run: large steps (vLLM's default on an H100), the next one planned
    while the device computes, whole blocks only."""
    router: RouterLimits = field(
        default_factory=lambda: RouterLimits(max_waiting=4096, max_wait=600.0)
    )
    autoscaler: AutoscalerConfig = field(default_factory=AutoscalerConfig)
    network: Delay = field(default_factory=Delay)
    kv_bandwidth: float = 0.0  # bytes a second between two replicas, for KV blocks; 0: none move
    kills: tuple[Kill, ...] = ()
    slows: tuple[Slow, ...] = ()
    request_timeout: Seconds = 600.0  # as a gateway's default
    beat_period: Seconds = 0.5
    load_period: Seconds = 0.25  # between two reports of a gateway to the controller
    window: Window | None = None  # only what happens in it counts for groups of requests
    targets: Targets = NO_TARGETS  # goodput of requests that ask for nothing; nobody else knows
    concurrency: int | None = None  # closed loop: so many at a time, whatever the trace says
