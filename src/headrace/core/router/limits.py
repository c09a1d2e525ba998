"""Bounds of a Router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.health import HealthLimits

if TYPE_CHECKING:
    from headrace.types import Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLimits:
    """What a Router takes, how often it tries, and how long it waits for whom."""

    max_waiting: int = 256  # requests, >= 1
    max_wait: Seconds = 30.0  # in the queue, > 0
    fair_queue: bool = True  # its order: by class, tenants in turn; False: as they came
    max_outstanding: int = 512  # requests on one replica, >= 1 (a group may overshoot it)
    deadline_grace: Seconds = 2.0  # how long after a deadline an engine may still say so itself
    max_migrations: int = 3  # times a request survives its replica's end; 0: never
    max_retries: int = 2  # of a request whose attempts failed while their replicas live
    retry_share: float = 0.1  # retries of all requests together, in proportion to them
    retry_pause: Seconds = 0.025  # before a request is tried again where it failed; 0: none
    hedge_after: float = 2.0  # times the predicted time to a first token; 0: nobody is moved
    poison_deaths: int = 2  # replicas that die of a request until it is condemned; 0: never
    refuse_infeasible: bool = True  # what asks for its first token sooner than it can come
    discount_claims: bool = True  # of the prefix index, to the share that comes true
    max_busy: Seconds = 60.0  # that a replica which says that it is full is left alone
    kv_transfer: bool = True  # replicas fetch blocks from each other where that is quicker
    local_prefill: Tokens = 64  # so much of a prompt is computed where it is decoded; 0: nothing
    start_seconds: Seconds | None = None  # what a replica usually takes to become ready
    silent_after: Seconds = 3.0  # without a sign of life from a replica that beats
    stuck_after: Seconds = 10.0  # without a step of a replica that has work
    stream_silence: Seconds = 60.0  # without a byte from a replica that neither beats nor reports
    max_failures: int = 5  # in a row until a replica is ejected (3 if it never answered well)
    eject_for: Seconds = 10.0  # the first time; the n-th time n times as long
    max_eject_for: Seconds = 120.0

    @property
    def health(self) -> HealthLimits:
        """The part of a FailureDetector."""
        return HealthLimits(
            silent_after=self.silent_after,
            stuck_after=self.stuck_after,
            stream_silence=self.stream_silence,
            max_failures=self.max_failures,
            eject_for=self.eject_for,
            max_eject_for=self.max_eject_for,
        )
