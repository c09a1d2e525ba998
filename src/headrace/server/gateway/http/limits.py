"""Caps and deadlines of the data plane."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

HEALTH_PATHS = frozenset(("/live", "/ready", "/health"))
"""What a few connections over the cap may still ask for."""

_Bytes = Annotated[int, Meta(ge=1024, le=1 << 30)]
_Seconds = Annotated[float, Meta(gt=0, le=86400)]
_Number = Annotated[int, Meta(ge=1, le=1 << 20)]


class HttpLimits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a client may use up."""

    max_head_bytes: Annotated[
        _Bytes, Meta(description="request line and header fields of one request")
    ] = 32 * 1024
    max_header_fields: Annotated[_Number, Meta(description="header fields of one request")] = 100
    max_body_bytes: Annotated[_Bytes, Meta(description="body of one request")] = 8 * 1024 * 1024
    header_timeout: Annotated[
        _Seconds, Meta(description="from the first byte of a request to the end of its head")
    ] = 10.0
    body_timeout: Annotated[
        _Seconds, Meta(description="from the end of the head to the end of the body")
    ] = 30.0
    min_body_rate: Annotated[
        float, Meta(ge=0, le=1e9, description="bytes/s of a body on average, after body_grace")
    ] = 1024.0
    body_grace: Annotated[_Seconds, Meta(description="before min_body_rate is demanded")] = 5.0
    idle_timeout: Annotated[
        _Seconds, Meta(description="between two requests of a kept connection")
    ] = 60.0
    write_timeout: Annotated[
        _Seconds, Meta(description="after which a client that does not read is given up")
    ] = 30.0
    max_send_buffer_bytes: Annotated[_Bytes, Meta(description="unsent bytes per connection")] = (
        1024 * 1024
    )
    linger: Annotated[
        _Seconds, Meta(description="after the last answer, how long input is still dropped")
    ] = 2.0
    max_connections: Annotated[_Number, Meta(description="open client connections")] = 1024
    reserved_connections: Annotated[
        _Number, Meta(description="more than that may still ask for /live, /ready, /health")
    ] = 16
    max_connections_per_ip: Annotated[
        _Number, Meta(description="open client connections from one address")
    ] = 64
    loopback_is_exempt: Annotated[
        bool, Meta(description="no such cap for local addresses: reverse proxies, local tools")
    ] = True
    max_pipelined: Annotated[
        _Number, Meta(description="requests of one connection that wait for their turn")
    ] = 32
    max_backlog_bytes: Annotated[
        _Bytes, Meta(description="bytes kept behind the request that is being answered")
    ] = 64 * 1024
    ping_period: Annotated[
        _Seconds, Meta(description="silence of a stream after which a comment is sent")
    ] = 15.0
    sweep_period: Annotated[
        _Seconds, Meta(description="how often deadlines are looked at: their precision")
    ] = 1.0
