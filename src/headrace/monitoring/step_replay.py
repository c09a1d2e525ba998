"""Replay: the events of a journal told again to the core that they were told to.

The same decisions must come of it; the first that does not is shown beside what was decided then.
Source of the idea: deterministic replay of state machines from a checkpoint and a log.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple
from zlib import decompress
from zlib import error as zlib_error

import msgspec

from headrace.core.kvcache.chain import prompt_chain
from headrace.core.kvcache.transfers import Tier, TierChanged, TierRead, TransferDone
from headrace.core.scheduler.engine_core import EngineCore
from headrace.core.scheduler.events import Abort, SnapshotWanted, StepDone, StepFailed, Submit
from headrace.core.scheduler.plan import StepResult
from headrace.machine import Tick
from headrace.monitoring.freezing import FreezeError, thaw
from headrace.monitoring.step_journal import (
    FORMAT,
    AbortEntry,
    DoneEntry,
    FailedEntry,
    JournalDump,
    JournalError,
    JournalLine,
    OtherEntry,
    Segment,
    StepJournal,
    SubmitEntry,
    TierEntry,
)
from headrace.types import RequestId

if TYPE_CHECKING:
    from headrace.core.kvcache.transfers import TierEvent
    from headrace.core.scheduler.events import EngineEvent
    from headrace.types import Tokens

_decode_dump = msgspec.msgpack.Decoder(JournalDump).decode
_decode_segment = msgspec.msgpack.Decoder(Segment).decode
_decode_line = msgspec.msgpack.Decoder(JournalLine).decode


class Replayed(NamedTuple):
    """One segment. ``parted`` tells how the first different decision differs, "" if none does."""

    num_events: int
    num_steps: int
    parted: str
    reason: str = ""  # why it could not be replayed


def read_journal(data: bytes) -> JournalDump:
    """Return a journal's file; raises JournalError."""
    try:
        dump = _decode_dump(data)
    except msgspec.MsgspecError as error:
        raise JournalError(f"this is no journal of an engine: {error}") from None
    if dump.format != FORMAT:
        raise JournalError(f"the format is {dump.format[:40]!r}; this version reads {FORMAT}")
    return dump


def lines_of(segment: bytes) -> tuple[Segment, list[JournalLine]]:
    """Return a segment and its entries."""
    try:
        found = _decode_segment(segment)
        return found, [_decode_line(line) for line in found.lines]
    except msgspec.MsgspecError as error:
        raise JournalError(f"the journal is damaged: {error}") from None


def replay(segment: bytes) -> Replayed:
    """Tell a core again what it was told, up to the first difference."""
    found, lines = lines_of(segment)
    num_steps = 0
    if not found.anchor:
        return Replayed(0, 0, "", "the engine's state was not written down: raise journal_bytes")
    try:
        core = thaw(msgspec.msgpack.decode(decompress(found.anchor)))
    except (FreezeError, msgspec.MsgspecError, zlib_error) as error:
        return Replayed(0, 0, "", str(error))
    if not isinstance(core, EngineCore):
        raise JournalError("the journal's state is not that of an engine")
    journal = StepJournal(core, max_bytes=0)
    for number, line in enumerate(lines):
        event = _event(line, core.scheduler.kv.block_size)
        try:
            effects = core.handle(event, line.now)
        except Exception as error:  # the machine died: so it did then, or the difference is that
            return Replayed(number, num_steps, "", f"the core died: {error!r}")
        decisions = journal.decisions(effects)
        if decisions != line.decisions:
            parted = f"at {line.now:.6f} {event}\n  then {line.decisions}\n  now  {decisions}"
            return Replayed(number, num_steps, parted)
        num_steps += isinstance(line, DoneEntry)
    return Replayed(len(lines), num_steps, "")


def _event(line: JournalLine, block_size: Tokens) -> EngineEvent:
    match line:
        case SubmitEntry(request=request):
            if request.chain_root:
                chain = prompt_chain(request.chain_root, request.prompt, block_size)
                request = replace(request, chain=chain)
            return Submit(request)
        case DoneEntry():
            result = StepResult(
                tokens=line.tokens, seconds=line.seconds, more=line.more, failures=line.failures
            )
            return StepDone(line.step, result)
        case FailedEntry():
            return StepFailed(line.step, line.reason)
        case AbortEntry():
            return Abort(RequestId(line.request))
        case TierEntry():
            return _tier_event(line)
        case OtherEntry():
            return Tick() if line.snapshot_to is None else SnapshotWanted(line.snapshot_to)


def _tier_event(line: TierEntry) -> TierEvent:
    if line.number is not None:
        reads = tuple(TierRead(Tier(tier), num, seconds) for tier, num, seconds in line.reads)
        return TransferDone(number=line.number, num_done=line.num_done, reads=reads)
    used, quarantined, errors = line.counts
    return TierChanged(
        tier=Tier(line.tier),
        stored=line.stored,
        dropped=line.dropped,
        used_bytes=used,
        quarantined=quarantined,
        errors=errors,
    )
