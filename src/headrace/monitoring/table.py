"""The one table of metrics. docs/metrics.md is written from it (``python -m
headrace.monitoring.reference``); a test holds both against each other.

Buckets of the times are those of the OpenTelemetry conventions for generative AI (server time to
first token, time per output token), with longer ones for whole requests.
"""

from __future__ import annotations

from headrace.monitoring.metrics import Kind, Metric

_TTFT_BUCKETS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
)
_ITL_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
)
_REQUEST_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_TOKEN_BUCKETS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


def _counter(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name=f"headrace_{name}", kind=Kind.COUNTER, help=help_text, labels=labels)


def _gauge(name: str, help_text: str, *labels: str) -> Metric:
    return Metric(name=f"headrace_{name}", kind=Kind.GAUGE, help=help_text, labels=labels)


def _histogram(name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(
        name=f"headrace_{name}",
        kind=Kind.HISTOGRAM,
        help=help_text,
        labels=labels,
        buckets=buckets,
    )


# Gateway: what clients see

BUILD = _gauge("build", "Always 1; the labels name what runs.", "version", "model")
HTTP_REQUESTS = _counter(
    "http_requests_total", "HTTP requests answered, by route and status.", "route", "status"
)
CONNECTIONS = _gauge("connections", "Open client connections.")
GENERATIONS_RUNNING = _gauge("generations_running", "Generations accepted and not finished.")
GENERATIONS = _counter("generations_total", "Generations that ended, by finish reason.", "finish")
TIME_TO_FIRST_TOKEN = _histogram(
    "time_to_first_token_seconds",
    "From the request's last byte to its first token, at the gateway.",
    _TTFT_BUCKETS,
)
INTER_TOKEN = _histogram(
    "inter_token_seconds", "Between two tokens of one generation, at the gateway.", _ITL_BUCKETS
)
REQUEST_SECONDS = _histogram(
    "request_seconds", "From the request's last byte to the end of its answer.", _REQUEST_BUCKETS
)
PROMPT_TOKENS = _counter("prompt_tokens_total", "Prompt tokens of generations, as billed.")
CACHED_TOKENS = _counter(
    "cached_prompt_tokens_total", "Prompt tokens found in a prefix cache, as billed."
)
OUTPUT_TOKENS = _counter("output_tokens_total", "Tokens generated, as billed.")
OVERSHOOT_TOKENS = _counter(
    "overshoot_tokens_total", "Tokens that came after a stop string or an abort: not billed."
)
PROMPT_LENGTH = _histogram("prompt_tokens", "Length of prompts.", _TOKEN_BUCKETS)
OUTPUT_LENGTH = _histogram("output_tokens", "Length of generations.", _TOKEN_BUCKETS)

# Gateway: its replicas

REPLICA_READY = _gauge("replica_ready", "1 while a replica is connected.", "replica")
REPLICA_LOSSES = _counter("replica_losses_total", "Connections to a replica lost.", "replica")

# Engines, from their load reports

ENGINE_RUNNING = _gauge("engine_running", "Sequences in the running batch.", "replica")
ENGINE_WAITING = _gauge("engine_waiting", "Sequences that wait for their first step.", "replica")
ENGINE_WAITING_TOKENS = _gauge(
    "engine_waiting_tokens", "Prompt tokens not computed yet.", "replica"
)
KV_BLOCKS = _gauge(
    "kv_blocks",
    "KV cache blocks by state: used, cached (free, content may be hit), empty.",
    "replica",
    "state",
)
ENGINE_STEPS = _counter("engine_steps_total", "Steps planned.", "replica")
ENGINE_STEP_SECONDS = _counter(
    "engine_step_seconds_total", "Time that the executor spent in steps.", "replica"
)
ENGINE_PROMPT_TOKENS = _counter(
    "engine_prompt_tokens_total", "Prompt tokens of sequences that were scheduled.", "replica"
)
ENGINE_CACHED_TOKENS = _counter(
    "engine_cached_tokens_total", "Prompt tokens found in the prefix cache.", "replica"
)
ENGINE_OUTPUT_TOKENS = _counter("engine_output_tokens_total", "Tokens drawn.", "replica")
ENGINE_DISCARDED_TOKENS = _counter(
    "engine_discarded_tokens_total",
    "Tokens drawn for sequences that had ended meanwhile: never sent or billed.",
    "replica",
)
ENGINE_PREEMPTIONS = _counter(
    "engine_preemptions_total", "Sequences put back to make room.", "replica"
)

# Every process that is asked

PROCESS_RESIDENT = _gauge("process_resident_bytes", "Resident memory of this process.")
PROCESS_OPEN_FDS = _gauge("process_open_fds", "Open file descriptors of this process.")

GATEWAY_TABLE: tuple[Metric, ...] = (
    BUILD,
    HTTP_REQUESTS,
    CONNECTIONS,
    GENERATIONS_RUNNING,
    GENERATIONS,
    TIME_TO_FIRST_TOKEN,
    INTER_TOKEN,
    REQUEST_SECONDS,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    OUTPUT_TOKENS,
    OVERSHOOT_TOKENS,
    PROMPT_LENGTH,
    OUTPUT_LENGTH,
    REPLICA_READY,
    REPLICA_LOSSES,
    ENGINE_RUNNING,
    ENGINE_WAITING,
    ENGINE_WAITING_TOKENS,
    KV_BLOCKS,
    ENGINE_STEPS,
    ENGINE_STEP_SECONDS,
    ENGINE_PROMPT_TOKENS,
    ENGINE_CACHED_TOKENS,
    ENGINE_OUTPUT_TOKENS,
    ENGINE_DISCARDED_TOKENS,
    ENGINE_PREEMPTIONS,
    PROCESS_RESIDENT,
    PROCESS_OPEN_FDS,
)
