"""What a benchmark run is told: pure data, no defaults from the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.types import Seconds, Tokens

JsonValue: TypeAlias = (
    "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
)


class Endpoint(StrEnum):
    """The part of the API that is loaded."""

    COMPLETIONS = "completions"
    CHAT = "chat"

    @property
    def path(self) -> str:
        """Path below the API's root."""
        return "/chat/completions" if self is Endpoint.CHAT else "/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """``concurrency`` clients, each sending its next request when its last one has ended."""

    concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Arrivals at ``rate`` per second, whatever the server does: Poisson, or evenly spaced."""

    rate: float
    constant: bool = False


Arrivals: TypeAlias = ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Limits that a request must keep to count as good. None: not limited."""

    ttft_ms: float | None = None
    itl_ms: float | None = None  # on the request's mean inter-token latency
    e2e_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go. ``base_url`` may end in ``/v1`` or not."""

    base_url: str
    api_key: str | None = None
    keep_alive: bool = False
    connect_timeout: Seconds = 10.0
    request_timeout: Seconds = 600.0  # from sending to the last byte
    headers: Mapping[str, str] = field(default_factory=dict)  # further fields of each request


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """One run. ``requests`` is exact; ``input_tokens`` is, if a tokenizer is given."""

    target: Target
    model: str | None = None  # None: the first that the server lists
    endpoint: Endpoint = Endpoint.COMPLETIONS
    stream: bool = True
    arrivals: Arrivals = field(default_factory=lambda: ClosedLoop(concurrency=8))
    requests: int = 64
    input_tokens: Tokens = 128
    output_tokens: Tokens = 64
    prompts_path: str | None = None
    tokenizer_path: str | None = None
    ignore_eos: bool = True
    temperature: float | None = 0.0  # None: the field is not sent
    extra_body: Mapping[str, JsonValue] = field(default_factory=dict)
    cancel_share: float = 0.0  # [0, 1]: cut off by the client mid-stream
    warmup: int = 2  # requests, one after the other, not counted
    seed: int = 0
    goodput: Goodput | None = None
    max_in_flight: int = 4096  # open loop: arrivals beyond are refused here, and counted as errors
