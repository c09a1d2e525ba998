"""What the metrics of foreign servers say: requests there, use of the KV cache, progress.

The text is Prometheus's exposition format, 0.0.4; of it only lines of known names are looked at.
Values of one name are added up over their labels (data-parallel ranks), shares are averaged.
Sources: vllm/v1/metrics/loggers.py, sglang/srt/metrics/collector.py, llama.cpp
tools/server/server-context.cpp, the metrics page of text-generation-inference.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_RUNNING = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
    "tgi_batch_current_size",
    "headrace_generations_running",
)
_WAITING = (
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
    "tgi_queue_size",
)
_KV_USED = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "llamacpp:kv_cache_usage_ratio",
)
_PROGRESS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:iteration_tokens_total_count",
    "sglang:generation_tokens_total",
    "sglang:prompt_tokens_total",
    "sglang:realtime_tokens_total",
    "llamacpp:tokens_predicted_total",
    "llamacpp:prompt_tokens_total",
    "llamacpp:n_decode_total",
    "tgi_batch_inference_count",
    "tgi_request_generated_tokens_sum",
    "headrace_output_tokens_total",
    "headrace_engine_steps_total",
)
"""Counters that grow while anything is computed; which of them a server has does not matter."""

_NAMES = "|".join(map(re.escape, (*_RUNNING, *_WAITING, *_KV_USED, *_PROGRESS)))
_LINE = re.compile(rf"^({_NAMES})(?:\{{[^\n]*\}})?[ \t]+(\S+)".encode(), re.MULTILINE)


class ServerLoad(NamedTuple):
    """One look at a server. ``progress`` only ever grows while it lives."""

    running: int
    waiting: int
    kv_used: float  # share, 0 to 1; 0 where it is not said
    progress: float

    @property
    def requests(self) -> int:
        """All there, whoever sent them."""
        return self.running + self.waiting


def read_load(text: bytes) -> ServerLoad | None:
    """Return what a metrics page says, None if it has no metric that we know."""
    values: dict[str, list[float]] = {}
    for name, number in _LINE.findall(text):
        value = _number(number)
        if value is not None:
            values.setdefault(name.decode(), []).append(value)
    if not any(name in values for name in _RUNNING):
        return None
    shares = [share for name in _KV_USED for share in values.get(name, ())]
    return ServerLoad(
        running=round(_sum(values, _RUNNING)),
        waiting=round(_sum(values, _WAITING)),
        kv_used=min(sum(shares) / len(shares), 1.0) if shares else 0.0,
        progress=_sum(values, _PROGRESS),
    )


class ProgressWatch:
    """Notices a server that has work and computes nothing."""

    def __init__(self) -> None:
        self._progress: float | None = None
        self._since = 0.0

    def stuck_for(self, load: ServerLoad, now: float) -> float:
        """Take a look; return for how many seconds work has been there without progress."""
        if load.progress != self._progress or load.running == 0:
            self._progress = load.progress
            self._since = now
        return now - self._since


def _sum(values: dict[str, list[float]], names: tuple[str, ...]) -> float:
    return sum(value for name in names for value in values.get(name, ()))


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
