"""Reduce outcomes to figures. Pure: the same outcomes give the same summary.

Latencies run from when a request was *due* (its arrival in an open loop), not from when the
client got round to sending it, so a client that falls behind cannot flatter the server; how far
it fell behind is reported as ``lag_ms``. Requests that failed or that we cut are in no latency.

    due      started     piece 1     piece 2  ...  piece k   end
     |---------|------------|-----------|-------------|-------|
     '--------- TTFT -------'-- ITL ----'             |
     '------------------------- E2E --------------------------'

ITL is the time between two pieces of text as they arrive. A server that sends several tokens in
a piece has fewer, longer gaps: TPOT, (last piece - first) / (tokens - 1), does not depend on it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.bench.client import Outcome
    from headrace.bench.config import Goodput
    from headrace.types import Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A request of a run: when it was due, and what came of it."""

    due_at: Seconds
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Of a latency, in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCount:
    """Failures of one kind (and status), with one of their messages."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one run. Latencies are milliseconds, None where nothing was measured."""

    duration_s: float
    requests: int
    completed: int
    cut: int
    failed: int
    requests_per_s: float  # completed
    output_tokens_per_s: float
    output_tokens: Tokens
    prompt_tokens: Tokens
    cached_tokens: Tokens
    tokens_counted_by: str  # "usage", "pieces" or "mixed"
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    tpot_ms: Distribution | None
    e2e_ms: Distribution | None
    lag_ms: Distribution | None
    goodput_per_s: float | None
    good_share: float | None  # of all requests that were not cut
    errors: Sequence[ErrorCount]


def percentile(ascending: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of the values lie, interpolated linearly."""
    if not ascending:
        raise ValueError("no values")
    position = share * (len(ascending) - 1)
    low = int(position)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (position - low)


def distribution(seconds: Sequence[float]) -> Distribution | None:
    """Describe times given in seconds; None if there are none."""
    if not seconds:
        return None
    ms = sorted(value * 1000 for value in seconds)
    return Distribution(
        count=len(ms),
        mean=sum(ms) / len(ms),
        p50=percentile(ms, 0.50),
        p90=percentile(ms, 0.90),
        p95=percentile(ms, 0.95),
        p99=percentile(ms, 0.99),
        max=ms[-1],
    )


def tokens_of(outcome: Outcome) -> Tokens:
    """Count an outcome's output: by the server, else by the pieces that arrived."""
    if outcome.output_tokens is not None:
        return outcome.output_tokens
    return len(outcome.piece_times)


def summarise(samples: Sequence[Sample], *, goodput: Goodput | None = None) -> Summary:
    """Reduce a run's samples, of which there is at least one."""
    whole = [s for s in samples if s.outcome.failure is None and not s.outcome.cut]
    cut = sum(1 for s in samples if s.outcome.cut)
    start = min(s.due_at for s in samples)
    duration = max(max(s.outcome.ended_at for s in samples) - start, 1e-9)
    output = sum(tokens_of(s.outcome) for s in samples)
    good = None if goodput is None else sum(1 for s in whole if _is_good(s, goodput))
    uncut = len(samples) - cut
    return Summary(
        duration_s=duration,
        requests=len(samples),
        completed=len(whole),
        cut=cut,
        failed=uncut - len(whole),
        requests_per_s=len(whole) / duration,
        output_tokens_per_s=output / duration,
        output_tokens=output,
        prompt_tokens=sum(s.outcome.prompt_tokens or 0 for s in samples),
        cached_tokens=sum(s.outcome.cached_tokens or 0 for s in samples),
        tokens_counted_by=_counted_by(whole),
        ttft_ms=distribution([t for s in whole if (t := _ttft(s)) is not None]),
        itl_ms=distribution([gap for s in whole for gap in _gaps(s.outcome)]),
        tpot_ms=distribution([t for s in whole if (t := _tpot(s.outcome)) is not None]),
        e2e_ms=distribution([s.outcome.ended_at - s.due_at for s in whole]),
        lag_ms=distribution([s.outcome.started_at - s.due_at for s in samples]),
        goodput_per_s=None if good is None else good / duration,
        good_share=None if good is None else good / max(uncut, 1),
        errors=_errors(samples),
    )


def _ttft(sample: Sample) -> float | None:
    times = sample.outcome.piece_times
    return times[0] - sample.due_at if times else None


def _gaps(outcome: Outcome) -> list[float]:
    times = outcome.piece_times
    return [after - before for before, after in itertools.pairwise(times)]


def _tpot(outcome: Outcome) -> float | None:
    tokens = tokens_of(outcome)
    if tokens < 2 or len(outcome.piece_times) < 2:
        return None
    return (outcome.piece_times[-1] - outcome.piece_times[0]) / (tokens - 1)


def _is_good(sample: Sample, limits: Goodput) -> bool:
    pairs = (
        (limits.ttft_ms, _ttft(sample)),
        (limits.itl_ms, _tpot(sample.outcome)),
        (limits.e2e_ms, sample.outcome.ended_at - sample.due_at),
    )
    return all(
        limit is None or seconds is None or seconds * 1000 <= limit for limit, seconds in pairs
    )


def _counted_by(whole: Sequence[Sample]) -> str:
    counted = sum(1 for s in whole if s.outcome.output_tokens is not None)
    if counted == 0:
        return "pieces"
    return "usage" if counted == len(whole) else "mixed"


def _errors(samples: Sequence[Sample]) -> tuple[ErrorCount, ...]:
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for sample in samples:
        failure = sample.outcome.failure
        if failure is None:
            continue
        kind = f"{failure.kind} {failure.status}" if failure.status else str(failure.kind)
        counts[kind] += 1
        examples.setdefault(kind, failure.message)
    return tuple(
        ErrorCount(kind=kind, count=count, example=examples[kind])
        for kind, count in counts.most_common()
    )
