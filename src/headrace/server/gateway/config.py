"""Settings of a gateway."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from headrace.core.balancer.registry import POLICY_WORDS
from headrace.server.gateway.http.limits import HttpLimits

_Seconds = Annotated[float, Meta(gt=0, le=86400)]
_Milliseconds = Annotated[float, Meta(ge=0, le=86_400_000)]
_Number = Annotated[int, Meta(ge=1, le=1 << 20)]


class GatewayConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One gateway process. Secrets come from the file or the environment, not from here."""

    http: HttpLimits = HttpLimits()
    max_model_len: Annotated[
        int, Meta(ge=0, le=1 << 30, description="longest prompt + output; 0: the model's own")
    ] = 0
    default_max_tokens: Annotated[
        int,
        Meta(ge=0, le=1 << 30, description="output limit where none is asked; 0: what fits"),
    ] = 0
    max_waiting: Annotated[
        _Number, Meta(description="requests that may wait for a replica with room")
    ] = 256
    max_wait: Annotated[_Seconds, Meta(description="how long one may wait there")] = 30.0
    max_outstanding: Annotated[_Number, Meta(description="requests on one replica")] = 512
    policy: Annotated[str, Meta(description=POLICY_WORDS)] = "predicted_ttft"
    max_migrations: Annotated[
        int, Meta(ge=0, le=16, description="times a request may go on elsewhere; 0: never")
    ] = 3
    max_retries: Annotated[
        int,
        Meta(ge=0, le=16, description="times a request that failed is tried elsewhere; 0: never"),
    ] = 2
    retry_share: Annotated[
        float, Meta(ge=0, le=1, description="retries in proportion to requests, besides a few")
    ] = 0.1
    retry_pause_ms: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            description="longest pause before a first retry where it failed, doubled each time; "
            "0: none",
        ),
    ] = 25.0
    hedge_after: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            description="a request that waits at a replica so many times its predicted time to a "
            "first token moves to a quicker one; 0: never",
        ),
    ] = 2.0
    poison_deaths: Annotated[
        int,
        Meta(
            ge=0,
            le=16,
            description="replicas that die of a request until it is refused; 0: it never is",
        ),
    ] = 2
    silent_after: Annotated[
        _Seconds, Meta(description="without a heartbeat, until a replica counts as hung")
    ] = 3.0
    kv_transfer: Annotated[
        bool, Meta(description="replicas fetch prefixes from each other where that is quicker")
    ] = True
    local_prefill: Annotated[
        int,
        Meta(ge=0, le=1 << 20, description="tokens of a prompt that a replica for decodes takes"),
    ] = 64
    request_timeout: Annotated[_Seconds, Meta(description="longest life of one request")] = 600.0
    fair_queue: Annotated[
        bool, Meta(description="the queue goes by class and tenant; no: as they came")
    ] = True
    refuse_infeasible: Annotated[
        bool, Meta(description="refuse at once what asks for its first token too soon")
    ] = True
    discount_claims: Annotated[
        bool, Meta(description="cached tokens that are predicted count for the share that is found")
    ] = True
    gossip_ms: Annotated[
        float,
        Meta(ge=0, le=50, description="gateways tell each other of news so often; 0: never"),
    ] = 10.0
    trust_tenant_header: Annotated[
        bool, Meta(description="believe x-headrace-tenant without a trusted key")
    ] = False
    interactive_ttft_ms: Annotated[
        _Milliseconds, Meta(description="goodput of requests without targets; 0: not measured")
    ] = 0.0
    interactive_itl_ms: Annotated[
        _Milliseconds, Meta(description="the same between two tokens, on average")
    ] = 0.0
    standard_ttft_ms: Annotated[_Milliseconds, Meta(description="the same for class standard")] = (
        0.0
    )
    standard_itl_ms: Annotated[_Milliseconds, Meta(description="the same between tokens")] = 0.0
    batch_ttft_ms: Annotated[_Milliseconds, Meta(description="the same for class batch")] = 0.0
    batch_itl_ms: Annotated[_Milliseconds, Meta(description="the same between tokens")] = 0.0
    max_retention: Annotated[
        float,
        Meta(ge=0, le=604_800, description="longest that a client may ask to keep a prompt cached"),
    ] = 3600.0
    stuck_after: Annotated[
        _Seconds, Meta(description="without a step, until a replica with work counts as stuck")
    ] = 10.0
    structured_output: Annotated[
        bool, Meta(description="take requests whose output must follow a schema or a grammar")
    ] = True
    max_grammar_bytes: Annotated[
        int, Meta(ge=1, le=1 << 20, description="longest schema or grammar, tools' together")
    ] = 64 * 1024
    grammar_seconds: Annotated[
        _Seconds, Meta(description="time to try a schema or a grammar; longer: refused")
    ] = 2.0
    inline_bytes: Annotated[
        int, Meta(ge=0, le=1 << 20, description="longer texts are tokenised in a thread")
    ] = 2048
    large_body_bytes: Annotated[
        int, Meta(ge=0, le=1 << 30, description="longer bodies are parsed in a thread")
    ] = 256 * 1024
    text_threads: Annotated[int, Meta(ge=1, le=64, description="threads for that")] = 1
    max_in_threads: Annotated[
        _Number, Meta(description="requests in those threads or waiting for them")
    ] = 256
