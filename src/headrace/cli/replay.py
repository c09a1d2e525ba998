"""``headrace replay``: an engine's journal of steps, told again to the code that is here."""

from __future__ import annotations

import platform
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import __version__
from headrace.build import run_interpreted
from headrace.core.scheduler.notes import Bound
from headrace.errors import StartError
from headrace.monitoring.step_journal import (
    DoneEntry,
    JournalError,
    StepDecision,
    SubmitEntry,
)
from headrace.monitoring.step_replay import lines_of, read_journal, replay

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from headrace.monitoring.step_journal import Decision, JournalDump, JournalLine

_EPILOG = """examples:
  headrace journal --engine e0                    # writes a file and says where
  headrace replay e0-4711-1764230400.123.journal  # the same decisions? exit code 1 if not
  headrace replay --show e0-4711-1764230400.123.journal"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace replay``."""
    parser.description = "Tell an engine again what it was told, and compare its decisions."
    parser.epilog = _EPILOG
    parser.add_argument("file", metavar="FILE", type=Path, help="a journal of steps")
    parser.add_argument("--show", action="store_true", help="print the decisions, run nothing")


def main(args: argparse.Namespace) -> int:
    """Replay or show; exit code 1 if a decision differs or nothing can be replayed.

    Plain Python replays what a compiled engine has decided too: a journal's state is made into
    objects without their ``__init__``, which compiled classes do not let happen.
    """
    if not args.show:
        run_interpreted()
    try:
        dump = read_journal(args.file.read_bytes())
        if args.show:
            for segment in dump.segments:
                _, lines = lines_of(segment)
                print("\n".join(text for line in lines for text in _shown(line)))
            return 0
        return _replay(dump)
    except OSError as error:
        raise StartError(f"{args.file}: {error.strerror}") from None
    except JournalError as error:
        raise StartError(f"{args.file}: {error}") from None


def _replay(dump: JournalDump) -> int:
    time = datetime.fromtimestamp(dump.unix).astimezone().isoformat(timespec="seconds")
    print(f"{dump.replica}, {time}, version {dump.version}: {dump.reason}")
    if (dump.version, dump.python) != (__version__, platform.python_version()):
        print(f"written by version {dump.version} on Python {dump.python}: decisions may differ")
    good = bad = 0
    for number, segment in enumerate(dump.segments):
        found = replay(segment)
        steps = f"{found.num_events} events, {found.num_steps} steps"
        if found.parted:
            print(f"part {number}: another decision after {steps}\n  {found.parted}")
            bad += 1
        elif found.reason and not found.num_events:
            print(f"part {number}: cannot be replayed: {found.reason}")
        else:
            print(f"part {number}: the same decisions, {steps}; {found.reason or 'to the end'}")
            good += 1
    return 0 if good and not bad else 1


def _shown(line: JournalLine) -> Iterator[str]:
    match line:
        case SubmitEntry(request=request):
            yield f"{line.now:.6f} submit {request.id}: {len(request.prompt)} tokens"
        case DoneEntry(step=step, seconds=seconds):
            yield f"{line.now:.6f} step {step} took {seconds * 1000:.1f} ms"
        case _:
            yield f"{line.now:.6f} {type(line).__name__.removesuffix('Entry').lower()}"
    for decision in line.decisions:
        yield f"    {_decision(decision)}"


def _decision(decision: Decision) -> str:
    if not isinstance(decision, StepDecision):
        return f"{decision.kind} {decision.subject}: {decision.reason}"
    _, _, _, _, bound, passed_over, parked, preempted = decision.notes
    rows = ", ".join(f"{sequence}@{start}+{count}" for sequence, start, count in decision.rows)
    lists = (("passed over", passed_over), ("parked", parked), ("preempted", preempted))
    more = "".join(f"; {what} {[*who]}" for what, who in lists if who)
    limit = Bound(bound).name.lower()
    return f"plan {decision.step}: {decision.num_rows} rows [{rows}], bound by {limit}{more}"
