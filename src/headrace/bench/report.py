"""A run's report: as JSON for machines, as a table for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from headrace.bench.config import BenchConfig, ClosedLoop, OpenLoop
from headrace.bench.environment import Environment, describe_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.bench.stats import Distribution, Summary

FORMAT_VERSION = 1
_COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was run, where, and the figures."""

    config: BenchConfig  # without the key
    model: str
    environment: Environment
    summary: Summary
    format_version: int = FORMAT_VERSION


def describe_run(config: BenchConfig, *, model: str, summary: Summary) -> Report:
    """Put a report together; the API key is left out."""
    public = replace(config, target=replace(config.target, api_key=None))
    return Report(config=public, model=model, environment=describe_environment(), summary=summary)


def to_json(report: Report) -> bytes:
    """Encode a report: readable, keys in a fixed order, a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(asdict(report)), indent=1) + b"\n"


def to_table(report: Report) -> str:
    """Render a report for a terminal of 80 columns."""
    lines = [*_head(report), "", *latency_rows(report.summary), "", *_rates(report.summary)]
    errors = report.summary.errors
    lines += [f"  {error.count} x {error.kind}: {error.example}" for error in errors]
    return "\n".join(lines)


def latency_rows(summary: Summary) -> list[str]:
    """Render the latencies, in milliseconds."""
    rows = [f"{'ms':<6}" + "".join(f"{name:>11}" for name in _COLUMNS)]
    named = (
        ("TTFT", summary.ttft_ms),
        ("ITL", summary.itl_ms),
        ("TPOT", summary.tpot_ms),
        ("E2E", summary.e2e_ms),
    )
    rows += [_row(name, values) for name, values in named if values is not None]
    return rows


def _row(name: str, values: Distribution) -> str:
    figures = (values.mean, values.p50, values.p90, values.p95, values.p99, values.max)
    return f"{name:<6}" + "".join(f"{value:>11,.1f}" for value in figures)


def _head(report: Report) -> Sequence[str]:
    config = report.config
    match config.arrivals:
        case ClosedLoop(concurrency=concurrency):
            shape = f"closed loop, {concurrency} at a time"
        case OpenLoop(rate=rate, constant=constant):
            shape = f"open loop, {rate:g}/s {'evenly spaced' if constant else 'Poisson'}"
    lengths = f"{config.input_tokens} tokens in" if config.prompts_path is None else "prompt file"
    return (
        f"{report.model} at {config.target.base_url} ({config.endpoint})",
        f"{config.requests} requests, {shape}, {lengths}, {config.output_tokens} out,"
        f" seed {config.seed}",
    )


def _rates(summary: Summary) -> list[str]:
    lines = [
        f"{summary.output_tokens_per_s:,.1f} output tokens/s,"
        f" {summary.requests_per_s:,.2f} requests/s"
        f" in {summary.duration_s:,.1f} s",
        f"{summary.completed} completed, {summary.cut} cut by the client, {summary.failed} failed;"
        f" {summary.prompt_tokens} tokens in ({summary.cached_tokens} cached),"
        f" {summary.output_tokens} out (by {summary.tokens_counted_by})",
    ]
    if summary.goodput_per_s is not None and summary.good_share is not None:
        lines.append(
            f"goodput {summary.goodput_per_s:,.2f} requests/s ({summary.good_share:.1%} good)"
        )
    if summary.lag_ms is not None and summary.lag_ms.p99 > 10:
        lines.append(
            f"this client fell behind its schedule by {summary.lag_ms.p99:.0f} ms (p99):"
            " it needs more processor time"
        )
    return lines
