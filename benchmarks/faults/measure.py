"""From what happened in one run to its figures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from headrace.bench.stats import percentile
from headrace.testing.stream_checks import Verdict, check
from headrace.testing.streams import Heard, metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from census import Census
    from injections import Fault
    from stage import Stage

    from headrace.monitoring.shapes import JournalEntry
    from headrace.testing.stream_checks import Texts
    from headrace.types import Seconds

GO_ON, DISPATCH = "go_on", "dispatch"
"""Kinds of journal entries: a request leaves its replica, is sent to one."""

_JOINED = "has joined"
"""In the reason of one that left only because a better place came up."""

TOLERATED_FDS = 8
"""Connections that are just being closed."""

ABORT_S = 0.1
"""Within this an engine must have given up a request whose client left."""

SLOW_SHARE = 0.25
"""A slow one of three replicas must get less than this share of requests."""

REFUSED = (0, 503)
"""Statuses that a new request may get from a server that ends; 0: no connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of times in milliseconds; None without a sample."""

    p50: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What clients felt in a part of the run."""

    ttft_ms: Percentiles
    itl_ms: Percentiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one fault with one seed. ``faults`` are broken promises, empty if all is well."""

    fault: str
    seed: int
    mode: str  # what is switched off; empty: nothing
    verdict: Verdict
    refused: int  # new requests that a server that ends turned away
    running_at_fault: int
    moved: int  # requests that left their replica, by the journal
    moved_ids: int
    max_attempts: int
    attempts: int  # dispatches, of
    dispatched: int  # so many requests
    detection_s: Sequence[Seconds]  # of each of them, from the fault to the decision
    stalls_s: Sequence[Seconds]  # longest silence that each of them's client heard
    recovery_s: Seconds | None  # from the fault (or its end) to all replicas ready
    before: Phase
    during: Phase
    after: Phase
    kv_blocks_held: float | None
    still_running: float | None
    grown: Census | None
    exit_code: int | None
    seconds: Seconds
    notes: dict[str, float] = field(default_factory=dict)
    faults: Sequence[str] = ()


def percentiles(seconds: Sequence[Seconds]) -> Percentiles:
    """Describe times."""
    if not seconds:
        return Percentiles(p50=None, p99=None, max=None)
    ms = sorted(value * 1000 for value in seconds)
    return Percentiles(
        p50=round(percentile(ms, 0.5), 1), p99=round(percentile(ms, 0.99), 1), max=round(ms[-1], 1)
    )


def phases(heard: Sequence[Heard], limits: Sequence[Seconds]) -> tuple[Phase, Phase, Phase]:
    """Return what clients felt before, during and after: cut at two times."""
    begin, end = limits
    parts = ((-1e18, begin), (begin, end), (end, 1e18))
    before, during, after = (_phase(heard, low, high) for low, high in parts)
    return before, during, after


def _phase(all_heard: Sequence[Heard], low: Seconds, high: Seconds) -> Phase:
    streams = [heard for heard in all_heard if heard.asked.stream and heard.times]
    ttft = [
        heard.times[0] - heard.started_at for heard in streams if low <= heard.started_at < high
    ]
    gaps = [
        after - before
        for heard in streams
        for before, after in pairwise(heard.times)
        if low <= after < high
    ]
    return Phase(ttft_ms=percentiles(ttft), itl_ms=percentiles(gaps))


def stalls(moved: Iterable[Heard], at: Seconds) -> list[Seconds]:
    """Return how long each of these streams was silent round a time."""
    found = []
    for heard in moved:
        before = max((t for t in heard.times if t <= at), default=heard.started_at)
        after = min((t for t in heard.times if t > at), default=None)
        if after is not None:
            found.append(after - before)
    return found


def moves(stage: Stage) -> list[JournalEntry]:
    """Return the decisions to move a request on, since the fault."""
    return [
        entry
        for entry in stage.journal()
        if entry.kind == GO_ON
        and entry.unix >= stage.marks.fault_unix - 0.001
        and _JOINED not in entry.reason
    ]


def dispatches(stage: Stage) -> list[str]:
    """Return the requests that were sent to a replica in this run, once for each time."""
    return [
        entry.subject.partition("~")[0]
        for entry in stage.journal()
        if entry.kind == DISPATCH and entry.unix >= stage.begun_unix
    ]


async def reduce_run(
    stage: Stage, fault: Fault, texts: Texts, *, seed: int, mode: str, before: Census
) -> Run:
    """Look at everything once the load has ended. The server may have ended too."""
    quiet = fault.ends or await stage.until_quiet()
    text = "" if fault.ends else await stage.figures()
    accepted = [heard for heard in stage.crowd.heard if not _refused(heard, stage, fault)]
    verdict = check(texts, accepted)
    refused = [heard for heard in stage.crowd.heard if _refused(heard, stage, fault)]
    verdict.bad_errors += check(texts, refused).bad_errors
    moved, sent = moves(stage), dispatches(stage)
    ids = [entry.subject.partition("#")[0] for entry in moved]
    marks = stage.marks
    end = max(marks.recovered_at or 0.0, marks.fault_at)
    phase = phases(stage.crowd.heard, (marks.fault_at, end))
    run = Run(
        fault=fault.name,
        seed=seed,
        mode=mode,
        verdict=verdict,
        refused=len(refused),
        running_at_fault=len(stage.running_at_fault()),
        moved=len(moved),
        moved_ids=len(set(ids)),
        max_attempts=1 + max((ids.count(name) for name in set(ids)), default=0),
        attempts=len(sent),
        dispatched=len(set(sent)),
        detection_s=[round(entry.unix - marks.fault_unix, 4) for entry in moved]
        if fault.strikes
        else (),
        stalls_s=[round(s, 4) for s in stalls(_felt(accepted, ids), marks.fault_at)],
        recovery_s=_recovery(stage),
        before=phase[0],
        during=phase[1],
        after=phase[2],
        kv_blocks_held=metric(text, "headrace_kv_blocks", state="used") if text else None,
        still_running=metric(text, "headrace_generations_running") if text else None,
        grown=None if fault.ends else stage.census() - before,
        exit_code=marks.exit_code,
        seconds=0.0,
        notes={name: round(value, 4) for name, value in marks.notes.items()},
    )
    pairs = stage.replicas * (stage.replicas - 1)
    return replace(run, faults=broken_promises(run, fault, quiet=quiet, pairs=pairs))


def _felt(accepted: Sequence[Heard], moved: Sequence[str]) -> list[Heard]:
    """Return the streams that were moved."""
    by_id = {heard.headers.get("x-request-id", ""): heard for heard in accepted}
    found = [by_id[name] for name in set(moved) if name in by_id]
    return [heard for heard in found if heard.asked.stream]


def _recovery(stage: Stage) -> Seconds | None:
    marks = stage.marks
    if marks.recovered_at is None:
        return None
    return round(marks.recovered_at - (marks.healed_at or marks.fault_at), 3)


def _refused(heard: Heard, stage: Stage, fault: Fault) -> bool:
    return fault.ends and heard.started_at > stage.marks.fault_at and heard.status in REFUSED


def broken_promises(run: Run, fault: Fault, *, quiet: bool, pairs: int = 0) -> list[str]:
    """Return what of the contract this run breaks, in words.

    Each of ``pairs`` of engines may keep a connection, with a thread, on which one lends the other
    blocks of its KV cache.
    """
    verdict = run.verdict
    failed = verdict.failed and fault.survives
    found = list(verdict.examples) if failed or not verdict.is_exact else []
    if not quiet:
        found.append(f"not quiet: {run.kv_blocks_held} KV blocks, {run.still_running} running")
    if run.grown is not None and run.grown.grew(
        tolerated_fds=TOLERATED_FDS + 2 * pairs, tolerated_threads=pairs
    ):
        found.append(f"left behind: {run.grown}")
    if fault.loses and run.recovery_s is None:
        found.append("never whole again")
    if fault.ends and run.exit_code != 0:
        found.append(f"exit code {run.exit_code}")
    abort_times = [(n, value) for n, value in run.notes.items() if n.startswith("abort_")]
    late = [f"{name} {value:.3f}" for name, value in abort_times if value > ABORT_S]
    if late:
        found.append(f"over {ABORT_S:g} s: {', '.join(late)}")
    if _slow_share(run) > SLOW_SHARE:
        found.append(f"the slow replica got {_slow_share(run):.0%} of the requests")
    return found


def cost(run: Run) -> int:
    """Return how many requests failed, or went where they should not."""
    return run.verdict.failed + (_slow_share(run) > SLOW_SHARE)


def _slow_share(run: Run) -> float:
    return run.notes.get("share_of_slow", 0.0)
