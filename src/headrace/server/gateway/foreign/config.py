"""Settings of pass-through to foreign replicas, and what a gateway process is told of each."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from headrace.server.gateway.foreign.servers import Server

_Seconds = Annotated[float, Meta(gt=0, le=86400)]
_Bytes = Annotated[int, Meta(ge=1024, le=1 << 30)]
_Number = Annotated[int, Meta(ge=1, le=1 << 20)]


_Text = Annotated[str, Meta(min_length=1, max_length=1024)]


class Migration(StrEnum):
    """Whether a stream that breaks off goes on at another replica."""

    EXACT = "exact"  # from token ids, where the servers tell and take them
    BEST_EFFORT = "best_effort"  # from its text
    OFF = "off"  # its client is told


class ForeignConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How foreign replicas are talked to, and how long they may be silent."""

    replicas: Annotated[
        tuple[_Text, ...],
        Meta(max_length=1024, description="servers: URL[,model=,alias=,weight=,canary=,...]"),
    ] = ()
    aliases: Annotated[
        tuple[_Text, ...], Meta(max_length=1024, description="further names of models: NAME=MODEL")
    ] = ()
    api_key: Annotated[
        str, Meta(max_length=4096, description="key sent to the replicas; empty: none")
    ] = ""
    migration: Annotated[
        Migration,
        Meta(description="streams that break off: best_effort (from text), exact (token ids), off"),
    ] = Migration.BEST_EFFORT
    max_resume_bytes: Annotated[
        _Bytes, Meta(description="text of a stream kept so that it can go on elsewhere")
    ] = 256 * 1024
    follow_models: Annotated[
        bool, Meta(description="use a replica that serves another model than before; no: leave it")
    ] = False
    metrics: Annotated[
        bool, Meta(description="read the replicas' metrics: load that others bring, progress")
    ] = True
    stuck_after: Annotated[
        _Seconds, Meta(description="work without progress in its metrics: a replica is left")
    ] = 60.0
    connect_timeout: Annotated[_Seconds, Meta(description="for a connection to a replica")] = 1.0
    first_event_timeout: Annotated[
        _Seconds, Meta(description="from a streamed request to its first event, for short prompts")
    ] = 30.0
    first_event_per_token: Annotated[
        float, Meta(ge=0, le=1, description="seconds that each prompt token adds to that")
    ] = 0.001
    silence_timeout: Annotated[
        _Seconds, Meta(description="between two pieces of an answer that has begun")
    ] = 10.0
    keep_seconds: Annotated[
        _Seconds, Meta(description="an unused connection to a replica is kept so long")
    ] = 4.0
    max_kept: Annotated[_Number, Meta(description="unused connections kept to one replica")] = 256
    max_answer_bytes: Annotated[
        _Bytes, Meta(description="body of an answer that is not streamed")
    ] = 32 * 1024 * 1024
    max_event_bytes: Annotated[_Bytes, Meta(description="one event of a stream")] = 1024 * 1024
    check_ids: Annotated[
        bool, Meta(description="all events of a stream have one id; no: for servers that vary it")
    ] = True
    poll_period: Annotated[_Seconds, Meta(description="between two looks at a replica")] = 2.0
    poll_timeout: Annotated[_Seconds, Meta(description="for an answer to such a look")] = 2.0
    poll_failures: Annotated[
        int, Meta(ge=1, le=100, description="looks in a row without an answer: it is lost")
    ] = 3
    sweep_period: Annotated[
        _Seconds, Meta(description="how often these times are looked at: their precision")
    ] = 0.25


class ForeignReplica(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One foreign replica. ``prefix`` is what its paths begin with, often empty.

    ``model`` is the only one of its models that is used ("": all), ``alias`` what it is called
    here, ``weight`` its capacity beside the others', ``canary`` the share of its model's requests
    that it is tried with (0: it is no canary), ``server`` what it is (None: what it says),
    ``migration`` what becomes of its streams (None: as is set for all). ``kv_events`` is where it
    publishes what it has cached ("": nowhere), ``kv_replay`` where missed events are asked for,
    ``tokenizer`` a file of its model's, ``block_size`` tokens are a key of the prefix index.
    """

    name: str
    host: str
    port: int
    prefix: str = ""
    tls: bool = False
    model: str = ""
    alias: str = ""
    weight: float = 1.0
    canary: float = 0.0
    server: Server | None = None
    migration: Migration | None = None
    kv_events: str = ""
    kv_replay: str = ""
    tokenizer: str = ""
    block_size: int = 16

    @property
    def url(self) -> str:
        """For people."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """The Host header field."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
