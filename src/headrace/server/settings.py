"""Settings of the processes, light enough for the supervisor and the command line to import.

Each field has its unit, its range and one line for ``--help`` and docs/config.md.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headrace.core.scheduler.drafts import Speculation
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.preemption import Preemption
from headrace.monitoring.logging import LogFormat, LogLevel
from headrace.server.gateway.config import GatewayConfig
from headrace.server.gateway.foreign.config import ForeignConfig, ForeignReplica
from headrace.server.transport.frames import ConnectionLimits
from headrace.types import Role

_Period = Annotated[float, Meta(gt=0, le=86400)]

DEFAULT_MODEL = "smollm2-135m-instruct"
SIMULATED_MODEL = "simulated"
AUTO = "auto"
"""A choice that is left to the processor and the model."""


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The supervisor: where it listens, what it starts, how long it waits."""

    host: Annotated[str, Meta(min_length=1, max_length=255, description="address to listen on")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 takes any")] = 8000
    api_key: Annotated[
        str, Meta(max_length=512, description="key that clients must send; empty: no key")
    ] = ""
    insecure_no_auth: Annotated[
        bool, Meta(description="allow a host other than loopback without a key")
    ] = False
    replicas: Annotated[
        str,
        Meta(max_length=64, description="engines: N, or FLOOR:CEILING to scale by load"),
    ] = "1"
    gateways: Annotated[
        int, Meta(ge=1, le=64, description="gateway processes, on one port together")
    ] = 1
    handover_seconds: Annotated[
        float,
        Meta(ge=0, le=600, description="idle client connections outlive a replaced gateway by"),
    ] = 2.0
    roles: Annotated[
        str,
        Meta(max_length=256, description="prefill=N,decode=N; empty: all do everything"),
    ] = ""
    key_file: Annotated[str, Meta(description="file of `headrace keys`; empty: only api_key")] = ""
    admin: Annotated[str, Meta(description="admin socket; empty: in the run directory")] = ""
    journal: Annotated[str, Meta(description="file for every decision; empty: in memory")] = ""
    drain_seconds: Annotated[
        float, Meta(ge=0, le=86400, description="time for running requests after SIGTERM")
    ] = 60.0
    start_seconds: Annotated[
        float, Meta(gt=0, le=86400, description="time for an engine to become ready")
    ] = 300.0
    restart_min_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="pause before a dead engine is started again")
    ] = 1.0
    restart_max_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="longest such pause; it doubles each time")
    ] = 60.0
    crash_loop_deaths: Annotated[
        int, Meta(ge=1, le=1000, description="deaths in a row, none after a minute of service")
    ] = 5


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is served."""

    name: Annotated[
        str, Meta(min_length=1, description="name, PATH.gguf, pypi:..., hf:org/repo, simulated")
    ] = DEFAULT_MODEL
    served_name: Annotated[
        str, Meta(max_length=256, description="name that clients use; empty: the model's own")
    ] = ""
    cache_dir: Annotated[
        str, Meta(description="fetched models; empty: the user's cache directory")
    ] = ""


class EngineSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One replica."""

    threads: Annotated[
        int, Meta(ge=0, le=1024, description="threads that compute; 0: as many as cores")
    ] = 0
    kv_cache_tokens: Annotated[
        int, Meta(ge=64, le=1 << 30, description="tokens that the KV cache holds")
    ] = 32768
    max_model_len: Annotated[
        int, Meta(ge=0, le=1 << 30, description="longest prompt + output; 0: the model's own")
    ] = 0
    precision: Annotated[
        str, Meta(pattern="^(auto|f32|bf16)$", description="arithmetic: auto, f32, bf16")
    ] = AUTO
    kv_precision: Annotated[
        str, Meta(pattern="^(auto|f32|f16|u8)$", description="keys and values: auto, f32, f16, u8")
    ] = AUTO
    weight_form: Annotated[
        str,
        Meta(
            pattern="^(auto|stored|dense|both|int8)$",
            description="auto, stored (as in the file), dense (quicker in large batches), both, "
            "int8 (quickest, less exact)",
        ),
    ] = AUTO
    max_num_seqs: Annotated[
        int, Meta(ge=1, le=8192, description="sequences in one step at most")
    ] = 64
    max_num_batched_tokens: Annotated[
        int, Meta(ge=16, le=1 << 20, description="tokens in one step at most")
    ] = 512
    max_waiting: Annotated[
        int, Meta(ge=1, le=1 << 20, description="requests that may wait in one engine")
    ] = 1024
    steps_in_flight: Annotated[
        int, Meta(ge=1, le=2, description="2: plan a step while the device runs the one before")
    ] = 1
    itl_ms: Annotated[
        float,
        Meta(ge=0, le=3.6e6, description="between tokens, if no target is named; 0: any time"),
    ] = 150.0
    batch_itl_ms: Annotated[
        float, Meta(ge=0, le=3.6e6, description="the same for the batch class among itself")
    ] = 400.0
    order: Annotated[
        Order, Meta(description="who is next: due (class, tenant, latest start) or arrival")
    ] = Order.DUE
    fair: Annotated[bool, Meta(description="equal shares of time for tenants, by weight")] = True
    preemption: Annotated[
        Preemption, Meta(description="who gives up memory: least_regret or last_in")
    ] = Preemption.LEAST_REGRET
    refuse_late: Annotated[
        bool, Meta(description="refuse at once what cannot come within its targets")
    ] = True
    share_waiting: Annotated[
        bool, Meta(description="requests with a common prefix compute it once")
    ] = True
    share_partial: Annotated[
        bool, Meta(description="copy cached blocks that begin like the one needed")
    ] = True
    speculation: Annotated[
        Speculation, Meta(description="guess from the text so far: off, lookup")
    ] = Speculation.LOOKUP
    max_drafts: Annotated[
        int, Meta(ge=1, le=64, description="tokens guessed at once for a sequence at most")
    ] = 16
    grammar_threads: Annotated[
        int,
        Meta(ge=0, le=16, description="threads for masks of structured output; 0: in the step"),
    ] = 1
    eviction: Annotated[
        str,
        Meta(
            pattern="^(lru|foresight)$",
            description="cached content that goes first: foresight (least wanted), lru (oldest)",
        ),
    ] = "foresight"
    pinned_share: Annotated[
        float, Meta(ge=0, le=1, description="of the KV cache, what a tenant may pin; 0: no pins")
    ] = 0.25
    tenant_share: Annotated[
        float,
        Meta(ge=0.01, le=1, description="of the KV cache, what a tenant keeps from others; 1: all"),
    ] = 1.0
    slice_blocks: Annotated[
        int,
        Meta(ge=1, le=1 << 24, description="blocks that a long prompt takes or frees at once"),
    ] = 512
    audit_steps: Annotated[
        int, Meta(ge=0, le=1 << 20, description="steps between checks of all blocks; 0: never")
    ] = 256
    shed_stalled: Annotated[
        bool, Meta(description="end the request that is in the way of all; else the engine ends")
    ] = True
    max_setbacks: Annotated[
        int,
        Meta(ge=0, le=1 << 20, description="preemptions without gain that spare one; 0: never"),
    ] = 3
    journal_bytes: Annotated[
        int,
        Meta(ge=0, le=1 << 32, description="memory for the journal of steps; 0: none is kept"),
    ] = 8 << 20
    report_seconds: Annotated[
        float, Meta(gt=0, le=60, description="pause between load reports at the least")
    ] = 0.25
    step_seconds: Annotated[
        float, Meta(gt=0, le=86400, description="a step that takes longer is a fault")
    ] = 120.0
    max_faults: Annotated[
        int, Meta(ge=1, le=1000, description="failed steps in a row that end the engine")
    ] = 3
    host_cache_bytes: Annotated[
        int,
        Meta(ge=0, le=1 << 46, description="memory for blocks that leave the KV cache; 0: none"),
    ] = 0
    disk_cache_dir: Annotated[
        str, Meta(description="directory for blocks that leave the KV cache; empty: none")
    ] = ""
    disk_cache_bytes: Annotated[
        int, Meta(ge=1, le=1 << 50, description="limit of each replica's part of disk_cache_dir")
    ] = 4 << 30
    kv_transfer: Annotated[
        bool, Meta(description="fetch blocks from other replicas, and lend them")
    ] = True
    simulated_speed: Annotated[
        float, Meta(ge=0, le=1e6, description="time factor of the simulated model; 0: no time")
    ] = 1.0


class AutoscalerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Dynamic scaling; the fields of core.autoscaler.config.AutoscalerConfig with their ranges."""

    target_ttft: Annotated[_Period, Meta(description="wanted seconds to the first token")] = 1.0
    kv_limit: Annotated[
        float, Meta(gt=0, le=1, description="share of its KV cache that a replica may use")
    ] = 0.8
    short_window: Annotated[
        _Period, Meta(description="seconds of the mean that makes the pool grow")
    ] = 5.0
    long_window: Annotated[
        _Period, Meta(description="seconds of the other mean that lets it shrink")
    ] = 60.0
    scale_out_after: Annotated[
        _Period, Meta(description="seconds of need before replicas are started")
    ] = 2.0
    scale_in_after: Annotated[
        _Period,
        Meta(description="idle seconds before a replica ends; a start's time if that is more"),
    ] = 60.0
    cooldown: Annotated[_Period, Meta(description="seconds between two decisions by load")] = 5.0
    sensitivity: Annotated[
        float,
        Meta(gt=0, le=1, description="of the limits, what one replica fewer may be loaded to"),
    ] = 0.7
    start_guess: Annotated[
        _Period, Meta(description="seconds that a start takes, until one was seen")
    ] = 10.0
    start_margin: Annotated[
        _Period, Meta(description="seconds for a new replica to take over work")
    ] = 2.0
    replace_pause: Annotated[
        _Period, Meta(description="seconds before a replica that is gone for good is replaced")
    ] = 1.0


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all processes write to stderr."""

    format: Annotated[LogFormat, Meta(description="text or json")] = LogFormat.TEXT
    level: Annotated[LogLevel, Meta(description="debug, info, warning, error")] = LogLevel.WARNING


class ModelFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that is in the file system. ``simulated``: only its words are used."""

    path: str
    name: str
    simulated: bool = False


class ConsoleConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The web console, a process of its own."""

    enabled: Annotated[bool, Meta(description="start the web console")] = True
    host: Annotated[str, Meta(min_length=1, max_length=255, description="loopback only")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int, Meta(ge=-1, le=65535, description="-1: the server's port + 1; 0: any")
    ] = -1


class ConsoleProcess(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that the supervisor tells the console process. ``token`` is wanted from browsers."""

    listening_fd: int
    token: str
    admin: str  # path of the admin socket
    server_url: str  # for the playground
    log: LogConfig


class EngineProcess(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that the supervisor tells an engine process."""

    replica: str
    role: Role = Role.MIXED
    socket: str
    cache_dir: str
    model: ModelFile
    engine: EngineSettings
    transport: ConnectionLimits
    log: LogConfig
    drain_seconds: float


class GatewayProcess(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that the supervisor tells a gateway process. ``engines``: sockets by replica.

    With ``replicas`` it stands before those and has no model of its own.
    """

    name: str
    listening_fd: int
    engines: dict[str, str]
    control: str = ""  # path of the Unix socket where it listens for the controller
    gossip: tuple[str, ...] = ()  # sockets of all gateways; empty: it is the only one
    place: int = 0  # its own among them
    handover_seconds: float = 0.0
    cache_secret: str = ""  # hexadecimal: salts of the prefix cache derive from it
    key_file: str = ""
    journal: str = ""
    replicas: tuple[ForeignReplica, ...] = ()
    foreign: ForeignConfig = ForeignConfig()
    model: ModelFile
    served_name: str
    api_keys: tuple[str, ...]
    gateway: GatewayConfig
    transport: ConnectionLimits
    log: LogConfig
    drain_seconds: float
