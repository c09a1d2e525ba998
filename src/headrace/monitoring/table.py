"""The one table of metrics. docs/metrics.md is written from it (``python -m
headrace.monitoring.reference``); a test holds both against each other.

Buckets of the times are those of the OpenTelemetry conventions for generative AI (server time to
first token, time per output token), with longer ones for whole requests. Long because it is one
table.
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

WITH_TARGETS = _counter(
    "requests_with_targets_total",
    "Requests with targets that ended: asked for by the request or set for its class.",
    "class",
)
WITHIN_TARGETS = _counter(
    "requests_within_targets_total",
    "Of those, the ones that ended well within all of them. Its rate is the goodput.",
    "class",
)
TARGETS_MISSED = _counter(
    "targets_missed_total",
    "Targets missed: ttft, itl (mean of a request), deadline; refused or failed requests.",
    "class",
    "target",
)
CONSTRAINED = _counter(
    "constrained_requests_total",
    "Requests for structured output by kind, and whether their grammar was taken or refused.",
    "kind",
    "verdict",
)
GRAMMAR_SECONDS = _histogram(
    "grammar_seconds",
    "To compile and try a grammar that was not remembered, the wait for a thread included.",
    (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)

# Gateway: its replicas and the Router's decisions

REPLICA_READY = _gauge("replica_ready", "1 while a replica is connected.", "replica")
REPLICA_LOSSES = _counter("replica_losses_total", "Connections to a replica lost.", "replica")
REPLICA_STATE = _gauge(
    "replica_state",
    "1 for the state that the router sees a replica in, 0 for the others.",
    "replica",
    "state",
)
EJECTIONS = _counter("ejections_total", "Replicas put out for failing too often.", "replica")
ROUTER_WAITING = _gauge("router_waiting", "Requests that no replica has yet.")
ROUTER_WAITING_TOKENS = _gauge("router_waiting_tokens", "Prompt tokens of those requests.")
DISPATCHES = _counter(
    "dispatches_total", "Attempts sent to a replica, by policy.", "replica", "policy"
)
MIGRATIONS = _counter(
    "migrations_total", "Streams that went on elsewhere, by the replica they left.", "replica"
)
HANDOVERS = _counter(
    "hand_overs_total", "Streams handed over behind their prompt, by the replica left.", "replica"
)
RETRIES = _counter(
    "retries_total",
    "Requests sent elsewhere before their first token, by the replica they left.",
    "replica",
)
HEDGES = _counter(
    "hedges_total",
    "Requests moved because they waited far longer than predicted, by the replica they left.",
    "replica",
)
ROUTER_FAILURES = _counter(
    "router_failures_total", "Generations that the router gave up, by error code.", "code"
)
POLICY_FALLBACKS = _counter(
    "policy_fallbacks_total", "Policies that failed and were replaced by least_requests.", "policy"
)
TTFT_RATIO = _histogram(
    "ttft_prediction_ratio",
    "Time from dispatch to first token over the policy's prediction of it.",
    (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 10),
)
PREDICTED_CACHED = _counter(
    "predicted_cached_tokens_total",
    "Prompt tokens that the router expected in the prefix cache of the replica it chose.",
    "replica",
)
ACTUAL_CACHED = _counter(
    "actual_cached_tokens_total", "Prompt tokens that were found there.", "replica"
)
PREFIX_INDEX_STATE = _gauge(
    "prefix_index_state",
    "1 for what the router's knowledge of a prefix cache is worth, 0 for the others.",
    "replica",
    "state",
)
PREFIX_INDEX_ACCURACY = _gauge(
    "prefix_index_accuracy",
    "How much of what was predicted of a prefix cache, or found there, was both: 1 is no error.",
    "replica",
)
KV_CHANGES = _counter("kv_changes_total", "Reports of changes of a prefix cache.", "replica")
KV_SNAPSHOTS = _counter(
    "kv_snapshots_total",
    "Times that such reports were missed and the whole content was asked for.",
    "replica",
)
KV_EVENTS = _counter(
    "kv_events_total",
    "Published by a foreign replica: blocks stored, and orphaned (behind one never heard of), "
    "events skipped, batches malformed.",
    "replica",
    "what",
)
KV_EVENT_GAPS = _counter(
    "kv_event_gaps_total",
    "Batches of such events were missed: and replayed, or what was known of the cache is void.",
    "replica",
    "what",
)
KV_NAMED_PROMPTS = _counter(
    "kv_named_prompts_total",
    "Prompts tokenised for replicas that publish KV events: named, or unnamed (as with images).",
    "model",
    "what",
)
KEYS_REFUSED = _counter(
    "keys_refused_total", "Requests refused for their API key, by error code.", "code"
)

# Engines, from their load reports

ENGINE_RUNNING = _gauge("engine_running", "Sequences in the running batch.", "replica")
ENGINE_WAITING = _gauge("engine_waiting", "Sequences that wait for their first step.", "replica")
ENGINE_WAITING_TOKENS = _gauge(
    "engine_waiting_tokens", "Prompt tokens not computed yet.", "replica"
)
KV_BLOCKS = _gauge(
    "kv_blocks",
    "KV cache blocks by state: used, cached (free, content may be hit), empty, quarantined.",
    "replica",
    "state",
)
KV_PINNED = _gauge(
    "kv_blocks_pinned", "Cached KV blocks that clients asked to keep for a time.", "replica"
)
KV_EVICTED = _counter(
    "kv_evicted_total", "Cached KV blocks whose content was lost to make room.", "replica"
)
KV_REGRETTED = _counter(
    "kv_regretted_total", "Evicted KV blocks that were computed again before long.", "replica"
)
ENGINE_SHED = _counter(
    "engine_shed_total", "Requests that were in the way and ended with an error.", "replica"
)
ENGINE_STEPS = _counter("engine_steps_total", "Steps planned.", "replica")
ENGINE_STEP_SECONDS = _counter(
    "engine_step_seconds_total", "Time that the executor spent in steps.", "replica"
)
ENGINE_PROMPT_TOKENS = _counter(
    "engine_prompt_tokens_total", "Prompt tokens of sequences that were scheduled.", "replica"
)
ENGINE_COMPUTED_TOKENS = _counter(
    "engine_computed_tokens_total", "Prompt tokens computed, again ones included.", "replica"
)
ENGINE_RECOMPUTED_TOKENS = _counter(
    "engine_recomputed_tokens_total",
    "Of the computed tokens, those computed once more after a preemption.",
    "replica",
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
ENGINE_DRAFT_TOKENS = _counter(
    "engine_draft_tokens_total", "Tokens guessed and computed on trial.", "replica"
)
ENGINE_ACCEPTED_DRAFTS = _counter(
    "engine_accepted_draft_tokens_total", "Of the guessed tokens, those drawn.", "replica"
)
ENGINE_PREEMPTIONS = _counter(
    "engine_preemptions_total", "Sequences put back to make room.", "replica"
)

# Engines' lower KV tiers

KV_TIER_BYTES = _gauge("kv_tier_bytes", "Blocks in host memory and on disk.", "replica", "tier")
KV_TIER_SAVED = _counter("kv_tier_saved_blocks_total", "Blocks saved to lower tiers.", "replica")
KV_TIER_LOADED = _counter(
    "kv_tier_loaded_tokens_total", "Tokens fetched from lower tiers instead of computed.", "replica"
)
KV_TIER_SECONDS = _counter("kv_tier_load_seconds_total", "Time that those took.", "replica")
KV_TIER_DECLINED = _counter(
    "kv_tier_declined_tokens_total",
    "Tokens there that would have taken longer to fetch than to compute.",
    "replica",
)
KV_TIER_QUARANTINED = _counter(
    "kv_tier_quarantined_total", "Saved blocks that were found damaged.", "replica"
)
KV_TIER_ERRORS = _counter(
    "kv_tier_errors_total", "Times a tier could not be used (disk full, hung load).", "replica"
)

KV_PEER_TOKENS = _counter(
    "kv_peer_tokens_total", "Tokens fetched from other replicas instead of computed.", "replica"
)
KV_PEER_SECONDS = _counter("kv_peer_seconds_total", "Time that those took.", "replica")
KV_PEER_MISSED = _counter(
    "kv_peer_missed_tokens_total", "Tokens asked of other replicas, and not got.", "replica"
)

# Every process: the gateway's own, engines' from their heartbeats

PROCESS_RESIDENT = _gauge("process_resident_bytes", "Resident memory of a process.", "process")
PROCESS_OPEN_FDS = _gauge("process_open_fds", "Open file descriptors of a process.", "process")
PROCESS_CPU = _counter("process_cpu_seconds_total", "CPU time of a process.", "process")

# Controller: the replica set

REPLICAS = _gauge("replicas", "Replicas there are, by what they are doing.", "state")
REPLICAS_DESIRED = _gauge("replicas_desired", "Replicas that the autoscaler wants.")
REPLICAS_FLOOR = _gauge("replicas_floor", "The least number of replicas.")
REPLICAS_CEILING = _gauge("replicas_ceiling", "The greatest number of replicas.")
SCALINGS = _counter(
    "scaling_decisions_total", "Decisions on the number of replicas: out, in, same.", "direction"
)
RESTARTS = _counter("restarts_total", "Times that a process was started again.", "process")

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
    WITH_TARGETS,
    WITHIN_TARGETS,
    TARGETS_MISSED,
    CONSTRAINED,
    GRAMMAR_SECONDS,
    KEYS_REFUSED,
    REPLICA_READY,
    REPLICA_LOSSES,
    REPLICA_STATE,
    EJECTIONS,
    ROUTER_WAITING,
    ROUTER_WAITING_TOKENS,
    DISPATCHES,
    MIGRATIONS,
    HANDOVERS,
    RETRIES,
    HEDGES,
    ROUTER_FAILURES,
    POLICY_FALLBACKS,
    TTFT_RATIO,
    PREDICTED_CACHED,
    ACTUAL_CACHED,
    PREFIX_INDEX_STATE,
    PREFIX_INDEX_ACCURACY,
    KV_CHANGES,
    KV_SNAPSHOTS,
    KV_EVENTS,
    KV_EVENT_GAPS,
    KV_NAMED_PROMPTS,
    ENGINE_RUNNING,
    ENGINE_WAITING,
    ENGINE_WAITING_TOKENS,
    KV_BLOCKS,
    KV_PINNED,
    KV_EVICTED,
    KV_REGRETTED,
    ENGINE_STEPS,
    ENGINE_STEP_SECONDS,
    ENGINE_PROMPT_TOKENS,
    ENGINE_COMPUTED_TOKENS,
    ENGINE_RECOMPUTED_TOKENS,
    ENGINE_CACHED_TOKENS,
    ENGINE_OUTPUT_TOKENS,
    ENGINE_DISCARDED_TOKENS,
    ENGINE_DRAFT_TOKENS,
    ENGINE_ACCEPTED_DRAFTS,
    ENGINE_PREEMPTIONS,
    KV_TIER_BYTES,
    KV_TIER_SAVED,
    KV_TIER_LOADED,
    KV_TIER_SECONDS,
    KV_TIER_DECLINED,
    KV_TIER_QUARANTINED,
    KV_TIER_ERRORS,
    KV_PEER_TOKENS,
    KV_PEER_SECONDS,
    KV_PEER_MISSED,
    ENGINE_SHED,
    PROCESS_RESIDENT,
    PROCESS_OPEN_FDS,
    PROCESS_CPU,
)

CONTROLLER_TABLE: tuple[Metric, ...] = (
    REPLICAS,
    REPLICAS_DESIRED,
    REPLICAS_FLOOR,
    REPLICAS_CEILING,
    SCALINGS,
    RESTARTS,
    PROCESS_RESIDENT,
    PROCESS_OPEN_FDS,
    PROCESS_CPU,
)
