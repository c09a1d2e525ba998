"""JSON of the admin plane: what `headrace ps`, `explain` and the console are told.

Times are seconds; ``at`` counts from the start of the process that says it, ``unix`` is wall-clock
time, for people only. Prompts and answers are never in here.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class ReplicaRow(Struct, frozen=True, kw_only=True):
    """One replica, now."""

    replica: str
    state: str  # starting, ready, draining, stopping, suspect, ejected, probing, crash_loop, ...
    reason: str = ""
    pid: int = 0
    address: str = ""
    seconds_in_state: float = 0.0
    restarts: int = 0
    outstanding: int = 0
    others: int = 0  # requests there that came past this server, as far as it is known
    running: int = 0
    waiting: int = 0
    prefill_tokens: int = 0
    role: str = "mixed"  # prefill, decode, mixed
    kv_used: float = 0.0  # share of blocks, 0 to 1
    kv_tokens: int = 0
    cached_share: float = 0.0  # of prompt tokens, since its start
    resident_bytes: int = 0
    index: str = ""  # what the router's knowledge of its prefix cache is worth
    index_accuracy: float | None = None  # of the latest predictions from it, 0 to 1


class Percentiles(Struct, frozen=True, kw_only=True):
    """Of a window; None without a sample."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Rates(Struct, frozen=True, kw_only=True):
    """A second, over the window."""

    window: float  # seconds
    requests: float = 0.0  # that ended
    failures: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    cached_share: float = 0.0  # of prompt tokens
    with_targets: float = 0.0  # requests that ended and are measured by targets
    goodput: float = 0.0  # of those, the ones within them


class RequestRow(Struct, frozen=True, kw_only=True):
    """One request of the last ones, newest first in lists."""

    id: str
    unix: float
    state: str  # waiting, running, or how it ended: a finish reason or an error code
    replica: str = ""
    tenant: str = ""
    priority: str = ""
    missed: str | None = None  # targets that it missed; None: it is not measured, or goes on
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    migrations: int = 0
    ttft: float | None = None
    seconds: float = 0.0


class ScalingRow(Struct, frozen=True, kw_only=True):
    """A scaling decision."""

    unix: float
    desired: int
    present: int
    reason: str


class GatewayState(Struct, frozen=True, kw_only=True):
    """GET /state at a gateway, and of all gateways together.

    The counts are what percentiles are made of, by bucket (windows.py), for whoever adds up.
    """

    model: str
    policy: str
    replicas: list[ReplicaRow]
    waiting: int  # requests without a replica
    waiting_tokens: int
    running: int
    rates: Rates
    ttft: Percentiles
    itl: Percentiles
    requests: list[RequestRow]
    ttft_counts: dict[int, int] = {}
    itl_counts: dict[int, int] = {}


class GatewayRow(Struct, frozen=True, kw_only=True):
    """One gateway process."""

    gateway: str
    pid: int  # 0 while it has none
    connected: bool
    restarts: int = 0


class ServerState(Struct, frozen=True, kw_only=True):
    """GET /state at the controller: the gateway's part, and its own."""

    version: str
    url: str
    uptime: float
    floor: int
    ceiling: int
    desired: int
    scaling: list[ScalingRow]
    gateway: GatewayState | None  # None while it does not answer
    replicas: list[ReplicaRow]  # all that exist, starting ones too
    gateways: list[GatewayRow] = []
    restarting: str = ""  # what a rolling restart is at, empty without one
    console: str = ""  # URL of its page, token included; empty: there is none


class Span(Struct, frozen=True, kw_only=True):
    """A part of a request's time. Spans follow each other without a gap."""

    name: str  # receive, prepare, queue, engine queue, prefill, decode, move, finish
    start: float  # seconds from the arrival of the request's last byte
    seconds: float
    replica: str = ""
    note: str = ""  # e.g. "3 chunks, 512 of 640 tokens cached"


class CandidateRow(Struct, frozen=True, kw_only=True):
    """A replica that was considered."""

    replica: str
    cost: float
    cached_tokens: int


class PlacementRow(Struct, frozen=True, kw_only=True):
    """Why an attempt went where it went."""

    at: float  # seconds from the arrival
    replica: str
    policy: str
    reason: str
    predicted_ttft: float | None
    candidates: list[CandidateRow]
    actual_ttft: float | None = None  # from there to the attempt's first token; None without one


class TargetRow(Struct, frozen=True, kw_only=True):
    """What was asked of a request's time, and what came."""

    name: str  # ttft, itl, deadline
    asked: float
    got: float | None  # None: nothing yet
    missed: bool


class Explanation(Struct, frozen=True, kw_only=True):
    """GET /explain/ID: where each millisecond of a request went. Spans sum to ``seconds``."""

    id: str
    unix: float
    state: str
    tenant: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft: float | None
    seconds: float
    spans: list[Span]
    placements: list[PlacementRow]
    priority: str = ""
    targets: list[TargetRow] = []


class JournalEntry(Struct, frozen=True, kw_only=True):
    """One decision: what was done and why."""

    number: int
    unix: float
    source: str  # router, autoscaler, supervisor
    kind: str  # dispatch, go_on, fail, judged, scaled, start, drain, stop, policy_failed, died
    subject: str  # a request's or a replica's id
    reason: str


class DrainOrder(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /drain."""

    replica: str
    cancel: bool = False


class ScaleOrder(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /scale: the new range."""

    floor: int
    ceiling: int


class RestartOrder(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /restart: one after the other, without a failed request."""

    what: Literal["gateways", "replicas"]


class Done(Struct, frozen=True, kw_only=True):
    """The answer to an order: what happens now, in a sentence."""

    message: str
