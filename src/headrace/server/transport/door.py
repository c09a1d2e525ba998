"""What an engine checks of a request before its core sees it.

Gateways validate for clients, with better words; but another front end will appear, and a value
out of range must cost one request, not the engine. Here are the ranges that only the executor
would trip over; lengths are judged by the core (core/scheduler/intake.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from headrace.types import Request, SamplingParams

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 1024
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
MAX_SESSION_CHARS = 1024
_MAX_SEED = (1 << 64) - 1

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("top_k", 0, 1 << 31),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.0, 10.0),
    ("seed", 0, _MAX_SEED),
    ("choice", 0, 1 << 31),
)


def stranger(packed: bytes, vocab_size: int) -> str | None:
    """Return what is wrong with the tokens of a prompt (packed u32), None if all are known."""
    tokens = np.frombuffer(packed, "<u4")
    if tokens.size and tokens.max() >= vocab_size:
        return f"token ids must be 0 to {vocab_size - 1}, the prompt has {tokens.max()}"
    return None


def objection(request: Request, *, vocab_size: int) -> str | None:
    """Return what is wrong with ``request``, in words for its sender, or None."""
    if request.min_tokens > request.max_tokens + request.num_prior:
        return f"min_tokens {request.min_tokens} is above max_tokens {request.max_tokens}"
    times = (request.deadline, request.first_token_by, request.itl, request.retention)
    if any(time is not None and not math.isfinite(time) for time in times):
        return "a deadline or target is not a number"
    if request.itl is not None and request.itl <= 0:
        return f"itl is {request.itl} s; it must be above 0"
    if not MIN_WEIGHT <= request.weight <= MAX_WEIGHT:
        return f"the tenant's weight is {request.weight}, not within {MIN_WEIGHT} and {MAX_WEIGHT}"
    if request.retention is not None and request.retention < 0:
        return f"retention is {request.retention}, below 0"
    if len(request.session) > MAX_SESSION_CHARS:
        return f"session has more than {MAX_SESSION_CHARS} characters"
    if len(request.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        return f"more than {MAX_STOP_TOKEN_IDS} stop_token_ids"
    return _sampling_objection(request.sampling, vocab_size=vocab_size)


def _sampling_objection(sampling: SamplingParams, *, vocab_size: int) -> str | None:
    values = (
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.min_p,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
        sampling.seed,
        sampling.choice,
    )
    for (name, low, high), value in zip(_RANGES, values, strict=True):
        if not low <= value <= high:  # also false for NaN
            return f"{name} is {value}, not within {low} and {high}"
    if sampling.top_p == 0 or sampling.repetition_penalty == 0:
        return "top_p and repetition_penalty must be above 0"
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        return f"logprobs is {sampling.logprobs}, not within 0 and {MAX_LOGPROBS}"
    if len(sampling.logit_bias) > MAX_LOGIT_BIAS:
        return f"more than {MAX_LOGIT_BIAS} entries in logit_bias"
    for token, bias in sampling.logit_bias:
        if not 0 <= token < vocab_size or not math.isfinite(bias):
            return f"logit_bias has {token}: {bias}"
    return None
