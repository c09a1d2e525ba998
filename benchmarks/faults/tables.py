"""Tables of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from injections import FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from census import Census
    from measure import Percentiles, Run

    from headrace.bench.environment import Environment

NONE = "-"

COLUMNS = (
    "fault",
    "switched off",
    "runs",
    "requests",
    "failed",
    "turned away",
    "lost / repeated / foreign tokens",
    "wrong texts",
    "moved",
    "attempts / requests",
    "detected after s, p50 / max",
    "silence s, p50 / max",
    "whole again after s, p50 / max",
    "KV blocks held",
    "fds / threads / children more",
)
READING = (
    "Every token that any client heard is compared with the text that the simulated model must",
    "give. *Switched off*: `gateway.max_migrations = 0`, `gateway.max_retries = 0`,",
    "`server.drain_seconds = 0`, or `gateway.policy = round_robin`. *Moved*: requests that left",
    "their replica, by the decision journal; *attempts / requests*: how often requests were",
    "sent to a replica, moves included; *detected*: from the fault to that decision; *silence*:",
    "the longest pause that the clients of moved streams heard round the fault (for one without",
    "a first token: since it was sent, so F1 has the work of its long prompts in it); *whole",
    "again*: from the fault until every replica takes requests (F4, F6: from its end; F27b:",
    "until the drained one is gone; F27c: until the server has ended, with exit code 0; F28:",
    "until all are replaced). *Turned away*: new requests that a server that ends refused,",
    "which is no failure. F27a, F27b and F28 have a drain limit of 0.2 s, which streams",
    "outlast, so that they must move. F8b: streams that a foreign replica breaks off end with",
    "an error, never with a finish. Leaks are the largest of all runs.",
)
LATENCIES = ("fault", "switched off", "", "before", "during", "after")


_GROWN: tuple[Callable[[Census], int], ...] = (
    lambda census: census.fds,
    lambda census: census.threads,
    lambda census: census.children,
)


def summary_lines(run: Run) -> Iterator[str]:
    """Say how one run went."""
    verdict = run.verdict
    yield (
        f"{run.fault:<5} seed {run.seed:<2} {run.mode or 'all on':<14} "
        f"{verdict.failed:>3} of {verdict.requests} failed, "
        f"{verdict.lost_tokens}/{verdict.duplicated_tokens}/{verdict.foreign_tokens} tokens wrong, "
        f"{run.moved} moved, {run.attempts}/{run.dispatched} attempts, "
        f"silence {_span(run.stalls_s)} s, whole after {run.recovery_s} s ({run.seconds:g} s)"
    )
    for fault in () if run.mode else run.faults:
        yield f"      {fault}"
    for name, value in run.notes.items():
        yield f"      {name} {value:g}"


def markdown(environment: Environment, runs: Sequence[Run]) -> str:
    """Return the document."""
    groups = list(_groups(runs))
    notes = [line for group in groups for line in _notes(group)]
    lines = [
        "# Faults",
        "",
        f"`python benchmarks/faults/{environment.command}`",
        "",
        f"Commit {environment.commit}{' with changes' if environment.commit_dirty else ''}, "
        f"{environment.date[:10]}; {environment.cores} cores of {environment.cpu}, "
        f"{environment.system}, Python {environment.python}.",
        "",
        *_table(COLUMNS, map(_row, groups)),
        "",
        *READING,
        "",
        "Medians over runs; *before*, *during* (until whole again) and *after* the fault.",
        "",
        *_table(LATENCIES, (row for group in groups for row in _latency_rows(group))),
        *(["", *notes] if notes else []),
    ]
    return "\n".join(lines) + "\n"


def _groups(runs: Sequence[Run]) -> Iterator[list[Run]]:
    for key in dict.fromkeys((run.fault, run.mode) for run in runs):
        yield [run for run in runs if (run.fault, run.mode) == key]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _row(group: Sequence[Run]) -> list[str]:
    first = group[0]
    verdicts = [run.verdict for run in group]
    wrong = (
        sum(v.lost_tokens for v in verdicts),
        sum(v.duplicated_tokens for v in verdicts),
        sum(v.foreign_tokens for v in verdicts),
    )
    grown = [run.grown for run in group if run.grown is not None]
    more = [max((getter(g) for g in grown), default=0) for getter in _GROWN]
    held = [run.kv_blocks_held for run in group if run.kv_blocks_held is not None]
    return [
        f"{first.fault} {FAULTS[first.fault].title}",
        first.mode or NONE,
        str(len(group)),
        str(sum(v.requests for v in verdicts)),
        str(sum(v.failed for v in verdicts)),
        str(sum(run.refused for run in group)),
        " / ".join(map(str, wrong)),
        str(sum(v.wrong_texts for v in verdicts)),
        str(sum(run.moved for run in group)),
        _ratio(sum(run.attempts for run in group), sum(run.dispatched for run in group)),
        _span([s for run in group for s in run.detection_s]),
        _span([s for run in group for s in run.stalls_s]),
        _span([run.recovery_s for run in group if run.recovery_s is not None]),
        f"{sum(held):g}" if held else NONE,
        " / ".join(f"{n:+d}" for n in more) if grown else NONE,
    ]


def _latency_rows(group: Sequence[Run]) -> Iterator[list[str]]:
    first = group[0]
    figures: tuple[tuple[str, Callable[[Run], Sequence[Percentiles]]], ...] = (
        ("TTFT ms", lambda run: [p.ttft_ms for p in (run.before, run.during, run.after)]),
        ("ITL ms", lambda run: [p.itl_ms for p in (run.before, run.during, run.after)]),
    )
    for name, figure in figures:
        parts = [_latency([figure(run)[part] for run in group]) for part in range(3)]
        yield [first.fault, first.mode or NONE, f"{name}, p50 / p99", *parts]


def _latency(found: Iterable[Percentiles]) -> str:
    """Return the median over runs of their p50 and p99."""
    pairs = [(p.p50, p.p99) for p in found if p.p50 is not None and p.p99 is not None]
    if not pairs:
        return NONE
    halves = (sorted(column)[len(pairs) // 2] for column in zip(*pairs, strict=True))
    return " / ".join(f"{value:.0f}" for value in halves)


def _notes(group: Sequence[Run]) -> Iterator[str]:
    for name in group[0].notes:
        values = [run.notes[name] for run in group]
        yield f"- {group[0].fault} {name}: {_span(values)}"


def _span(values: Sequence[float]) -> str:
    if not values:
        return NONE
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.2f} / {ordered[-1]:.2f}"


def _ratio(attempts: int, requests: int) -> str:
    return f"{attempts / requests:.3f}" if requests else NONE
