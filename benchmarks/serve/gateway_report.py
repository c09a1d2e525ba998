"""Medians of gateway_peers.py's rounds, the bars they are held against, and its tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from bars import Verdict
from gateway_routers import (
    DIRECT,
    OURS_AWARE,
    OURS_IN_TURN,
    ROUTERS,
    RUST_AWARE,
    RUST_IN_TURN,
    Router,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from headrace.bench.environment import Environment

Medians: TypeAlias = "Mapping[str, Mapping[str, float]]"
"""Router -> figure -> median. A figure that was never counted is not there."""

RATES = {"1kb": 15_000.0, "32kb": 8_000.0}  # ours, a second of a core
EVENT_US = 30.0
EVENT_SHARE = 0.67
ADDED_MS = 1.0
HEAD = (
    "router",
    "req/s of a core, 1 KB",
    "32 KB",
    "CPU us of a paced event",
    "(slope)",
    "reads per event",
    "TTFT p50 / p99, ms",
    "added, ms",
    "wall req/s, 1 KB",
    "32 KB",
)


@dataclass(slots=True, kw_only=True)
class Turn:
    """One round of one router. What was answered wrongly is in ``errors`` and not counted."""

    router: str
    round: int
    figures: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of a run."""

    environment: Environment
    load_average_before: float
    versions: Mapping[str, str]
    not_run: Sequence[str]  # programs that are not there
    medians: Medians
    turns: Sequence[Turn]
    verdicts: Sequence[Verdict]


def medians_of(turns: Iterable[Turn]) -> dict[str, dict[str, float]]:
    """Return each figure's median, and with it what follows: rates of a core, what is added."""
    seen: dict[str, dict[str, list[float]]] = {}
    for turn in turns:
        of_router = seen.setdefault(turn.router, {})
        for name, value in turn.figures.items():
            of_router.setdefault(name, []).append(value)
    medians = {
        router: {name: median(values) for name, values in figures.items()}
        for router, figures in seen.items()
    }
    direct = medians.get(DIRECT.name, {})
    for router, row in medians.items():
        for whose in ("", "gateway_"):
            for size in RATES:
                if cpu := row.get(f"{whose}cpu_us_{size}"):
                    row[f"{whose}rate_{size}"] = round(1e6 / cpu)
        for name in ("ttft_p50_ms", "ttft_p99_ms"):
            if router != DIRECT.name and name in row and name in direct:
                row[f"added_{name}"] = round(row[name] - direct[name], 3)
    return medians


def judge(medians: Medians) -> list[Verdict]:
    """Hold ours against the bars. A peer that was not counted leaves its bar open."""
    rust = (*RUST_AWARE, *RUST_IN_TURN)
    return [
        _times(medians, OURS_AWARE, RUST_AWARE, "1kb", 3.0),
        _times(medians, OURS_IN_TURN, RUST_IN_TURN, "1kb", 2.0),
        _times(medians, OURS_AWARE, RUST_AWARE, "32kb", 2.0),
        _share(medians, OURS_AWARE, rust, EVENT_SHARE),
        _at_most(medians, OURS_AWARE, "added_ttft_p50_ms", ADDED_MS, "added TTFT p50, ms"),
        *(_at_least(medians, OURS_AWARE, size, rate) for size, rate in RATES.items()),
        _at_most(medians, OURS_AWARE, "cpu_us_event", EVENT_US, "CPU us of a paced event"),
    ]


def _times(
    medians: Medians, ours: Router, peers: Sequence[Router], size: str, factor: float
) -> Verdict:
    """Judge ours to take so many times what the better peer takes."""
    bar = f"{ours.name}, {size}: >= {factor:g} x the better of {_names(peers)}"
    figures = _figures(medians, (ours, *peers), f"rate_{size}")
    if figures is None:
        return Verdict(bar=bar, measured="-", reached=None)
    own, best = figures[0], max(figures[1:])
    text = f"{own:,.0f} / {best:,.0f} = {own / best:.2f}"
    return Verdict(bar=bar, measured=text, reached=own / best >= factor)


def _share(medians: Medians, ours: Router, peers: Sequence[Router], share: float) -> Verdict:
    """Judge an event to cost no more than a share of what it costs the best peer."""
    bar = f"{ours.name}, paced event: <= {share:g} x the best of {_names(peers)}"
    figures = _figures(medians, (ours, *peers), "cpu_us_event")
    if figures is None:
        return Verdict(bar=bar, measured="-", reached=None)
    own, best = figures[0], min(figures[1:])
    text = f"{own:.1f} / {best:.1f} us = {own / best:.2f}"
    return Verdict(bar=bar, measured=text, reached=own / best <= share)


def _at_least(medians: Medians, ours: Router, size: str, limit: float) -> Verdict:
    value = medians.get(ours.name, {}).get(f"rate_{size}")
    return Verdict(
        bar=f"{ours.name}, {size}: >= {limit:,.0f} req/s of a core",
        measured="-" if value is None else f"{value:,.0f}",
        reached=None if value is None else value >= limit,
    )


def _at_most(medians: Medians, ours: Router, name: str, limit: float, words: str) -> Verdict:
    value = medians.get(ours.name, {}).get(name)
    return Verdict(
        bar=f"{ours.name}, {words}: <= {limit:g}",
        measured="-" if value is None else f"{value:.2f}",
        reached=None if value is None else value <= limit,
    )


def _figures(medians: Medians, routers: Iterable[Router], name: str) -> list[float] | None:
    """Return a figure of each router; None if one has it not."""
    values = [medians.get(router.name, {}).get(name) for router in routers]
    counted = [value for value in values if value is not None]
    return counted if len(counted) == len(values) else None


def _names(routers: Iterable[Router]) -> str:
    return ", ".join(router.name for router in routers)


def markdown(report: Report) -> str:
    """Return the tables of a run."""
    rounds = max((turn.round for turn in report.turns), default=0)
    environment = report.environment
    rows = [row for router in ROUTERS for row in _rows(router, report.medians.get(router.name))]
    words = {True: "reached", False: "**missed**", None: "not measured"}
    bars = [(each.bar, each.measured, words[each.reached]) for each in report.verdicts]
    lines = [
        f"{environment.date[:16]}, {environment.cpu}, {environment.cores} cores; commit "
        f"{environment.commit}{' and changes' if environment.commit_dirty else ''}; medians of "
        f"{rounds} rounds; load before: {report.load_average_before:.2f}.",
        "",
        f"`{environment.command}`",
        "",
        ", ".join(f"{program} {version}" for program, version in report.versions.items()) + ".",
    ]
    if report.not_run:
        lines.append(f"Not run, since not found: {', '.join(report.not_run)}.")
    lines += ["", *_table(HEAD, rows), "", *_table(("bar", "measured", ""), bars), ""]
    lines += [
        f"- {turn.router}, round {turn.round}, not counted: {error}"
        for turn in report.turns
        for error in turn.errors
    ]
    return "\n".join(lines).rstrip() + "\n"


def _rows(router: Router, figures: Mapping[str, float] | None) -> list[tuple[str, ...]]:
    """Return a router's rows: none if it was not run; ours has one for a process of it, too."""
    if figures is None:
        return []

    def cell(name: str, form: str = ",.0f") -> str:
        return format(figures[name], form) if name in figures else "-"

    def costs(whose: str) -> tuple[str, ...]:
        rates = tuple(cell(f"{whose}rate_{size}") for size in RATES)
        return (*rates, *(cell(f"{whose}cpu_us_{name}", ".1f") for name in ("event", "slope")))

    reads = cell("reads_per_event", ".2f")
    first = " / ".join(cell(f"ttft_{share}_ms", ".2f") for share in ("p50", "p99"))
    added = " / ".join(cell(f"added_ttft_{share}_ms", ".2f") for share in ("p50", "p99"))
    wall = tuple(cell(f"wall_per_s_{size}") for size in RATES)
    rows = [(router.name, *costs(""), reads, first, added, *wall)]
    if any(name.startswith("gateway_") for name in figures):
        rows.append(("- its gateway process alone", *costs("gateway_"), *[""] * 5))
    return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
