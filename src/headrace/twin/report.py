"""Figures as text for a terminal: one run, or several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.twin.figures import Distribution, Figures, GroupFigures

MAX_TIMELINE = 40
"""Lines of the scaling timeline that are shown; JSON has all."""
MAX_REPLICAS = 32
_BAR = 20


def to_table(figures: Figures) -> str:
    """Render one run."""
    latencies = (("TTFT", figures.ttft_ms), ("ITL", figures.itl_ms), ("E2E", figures.e2e_ms))
    columns = "".join(f"{name:>11}" for name in ("mean", "p50", "p95", "p99", "max"))
    lines = [
        *head_lines(figures),
        f"policy {figures.setup.policy}, seed {figures.setup.seed}",
        "",
        f"{'ms':<6}{columns}",
        *(_latency_row(name, values) for name, values in latencies if values is not None),
        "",
        *_count_lines(figures),
        "",
        *_group_lines(figures),
        *_replica_lines(figures),
        *_timeline_lines(figures),
    ]
    return "\n".join(lines)


def to_comparison(runs: Sequence[Figures]) -> str:
    """Render runs of one trace side by side; ratios are to the first."""
    first = runs[0]
    width = max(14, *(len(run.setup.policy) + 2 for run in runs))
    ratio_width = width + 8
    head = f"{'':<22}{first.setup.policy:>{width}}"
    head += "".join(f"{run.setup.policy:>{ratio_width}}" for run in runs[1:])
    lines = [
        *head_lines(first),
        f"seed {first.setup.seed}; in brackets: against the first",
        "",
        head,
    ]
    has_targets = any(group.with_targets for group in first.groups)
    for name, value, form in (*_MEASURES, *(_TARGET_MEASURES if has_targets else ())):
        base = value(first)
        line = f"{name:<22}{format(base, form):>{width}}"
        for run in runs[1:]:
            mine = value(run)
            ratio = f"({mine / base:.2f}x)" if base else ""
            line += f"{format(mine, form):>{ratio_width - 8}}{ratio:>8}"
        lines.append(line)
    return "\n".join(lines)


def head_lines(figures: Figures) -> list[str]:
    """Say what was asked, and on what."""
    trace, setup = figures.trace, figures.setup
    tp = f" x {setup.tp}" if setup.tp > 1 else ""
    scale = f", {setup.floor} to {setup.ceiling}" if setup.floor != setup.ceiling else ""
    return [
        f"{trace.name}: {trace.requests:,} requests in {_time(trace.seconds)}, "
        f"{trace.prompt_tokens / trace.requests:,.0f} tokens in, "
        f"{trace.output_tokens / trace.requests:,.0f} out on average",
        f"{setup.model} ({setup.precision}) on {setup.gpu}{tp}, "
        f"{_number(setup.replicas, 'replica')}{scale}; each caches {setup.kv_tokens:,} tokens",
    ]


def _count_lines(figures: Figures) -> list[str]:
    failures = ", ".join(f"{count} x {code}" for code, count in figures.failures.items())
    return [
        f"{figures.completed:,} of {figures.requests:,} requests completed, "
        f"{figures.failed:,} failed{f' ({failures})' if failures else ''}; "
        f"{figures.wrong_tokens} tokens lost, repeated or foreign",
        f"{figures.output_tokens_per_s:,.0f} output tokens/s, "
        f"{figures.prompt_tokens_per_s:,.0f} prompt tokens/s, {figures.cached_share:.1%} of them "
        f"cached; {_time(figures.seconds)} in all",
        f"KV caches {figures.kv_used_mean:.1%} in use on average, {figures.kv_used_max:.1%} at "
        f"most; "
        f"{figures.migrations} migrations, {figures.retries} sent elsewhere before a first token, "
        f"{figures.hedges} moved because they waited in vain",
        f"{figures.replica_seconds:,.0f} replica-seconds ({figures.gpu_seconds:,.0f} GPU-seconds), "
        f"{figures.busy_share:.0%} of them busy; the busiest replica {figures.imbalance:.2f} x "
        "the mean",
    ]


def _group_lines(figures: Figures) -> list[str]:
    """One line for each class and tenant, if there is more than one, or targets."""
    groups = figures.groups
    if len(groups) < 2 and not any(group.with_targets for group in groups):
        return []
    lines = [
        f"{'class':<12}{'tenant':<12}{'requests':>9}{'TTFT p50':>10}{'p95':>9}{'ITL p50':>9}"
        f"{'p95':>9}{'tokens/s':>10}{'goodput/s':>10}{'within':>8}"
    ]
    lines += [
        f"{group.priority:<12}{group.tenant:<12.11}{group.requests:>9,}"
        f"{_of(_p50, group.ttft_ms):>10,.0f}{_of(_p95, group.ttft_ms):>9,.0f}"
        f"{_of(_p50, group.itl_ms):>9,.1f}{_of(_p95, group.itl_ms):>9,.1f}"
        f"{group.output_tokens_per_s:>10,.0f}{_targets_cells(group)}"
        for group in groups
    ]
    return [*lines, ""]


def _targets_cells(group: GroupFigures) -> str:
    if not group.with_targets:
        return f"{'-':>10}{'-':>8}"
    return f"{group.goodput_per_s:>10,.2f}{group.within_targets / group.with_targets:>8.1%}"


def _p50(values: Distribution) -> float:
    return values.p50


def _p95(values: Distribution) -> float:
    return values.p95


def _replica_lines(figures: Figures) -> list[str]:
    rows = figures.replicas[:MAX_REPLICAS]
    lines = [f"{'replica':<10}{'requests':>10}{'steps':>12}{'seconds':>10}  busy"]
    for row in rows:
        bar = "#" * round(row.busy_share * _BAR)
        lines.append(
            f"{row.replica:<10}{row.requests:>10,}{row.steps:>12,}{row.seconds:>10,.0f}  "
            f"{row.busy_share:>4.0%} {bar}"
        )
    if len(figures.replicas) > len(rows):
        lines.append(f"... and {len(figures.replicas) - len(rows)} more")
    return lines


def _timeline_lines(figures: Figures) -> list[str]:
    if not figures.scaling:
        return []
    shown = figures.scaling[:MAX_TIMELINE]
    lines = ["", *(f"{_time(step.at):>9}  {step.what:<12} {step.reason}" for step in shown)]
    if len(figures.scaling) > len(shown):
        lines.append(f"... and {len(figures.scaling) - len(shown)} more (--json has all)")
    return lines


def _latency_row(name: str, values: Distribution) -> str:
    figures = (values.mean, values.p50, values.p95, values.p99, values.max)
    return f"{name:<6}" + "".join(f"{value:>11,.1f}" for value in figures)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def _of(pick: Callable[[Distribution], float], values: Distribution | None) -> float:
    return 0.0 if values is None else pick(values)


_MEASURES: tuple[tuple[str, Callable[[Figures], float], str], ...] = (
    ("requests failed", lambda run: run.failed, ",.0f"),
    ("cached tokens, %", lambda run: run.cached_share * 100, ",.1f"),
    ("TTFT mean, ms", lambda run: _of(lambda d: d.mean, run.ttft_ms), ",.0f"),
    ("TTFT p50, ms", lambda run: _of(lambda d: d.p50, run.ttft_ms), ",.0f"),
    ("TTFT p95, ms", lambda run: _of(lambda d: d.p95, run.ttft_ms), ",.0f"),
    ("TTFT p99, ms", lambda run: _of(lambda d: d.p99, run.ttft_ms), ",.0f"),
    ("ITL p50, ms", lambda run: _of(lambda d: d.p50, run.itl_ms), ",.1f"),
    ("ITL p95, ms", lambda run: _of(lambda d: d.p95, run.itl_ms), ",.1f"),
    ("ITL p99, ms", lambda run: _of(lambda d: d.p99, run.itl_ms), ",.1f"),
    ("E2E p50, ms", lambda run: _of(lambda d: d.p50, run.e2e_ms), ",.0f"),
    ("E2E p95, ms", lambda run: _of(lambda d: d.p95, run.e2e_ms), ",.0f"),
    ("output tokens/s", lambda run: run.output_tokens_per_s, ",.0f"),
    ("busy, %", lambda run: run.busy_share * 100, ",.1f"),
    ("busiest / mean", lambda run: run.imbalance, ",.2f"),
    ("KV in use, %", lambda run: run.kv_used_mean * 100, ",.1f"),
    ("migrations", lambda run: run.migrations, ",.0f"),
    ("replica-seconds", lambda run: run.replica_seconds, ",.0f"),
)
_TARGET_MEASURES: tuple[tuple[str, Callable[[Figures], float], str], ...] = (
    ("goodput, requests/s", lambda run: sum(g.goodput_per_s for g in run.groups), ",.2f"),
    (
        "within targets, %",
        lambda run: (
            100
            * sum(g.within_targets for g in run.groups)
            / max(1, sum(g.with_targets for g in run.groups))
        ),
        ",.1f",
    ),
)
