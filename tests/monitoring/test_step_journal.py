"""The journal of an engine's steps: bounded, and replayed to the same decisions."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import pytest

from headrace.core.kvcache.chain import chain_root, prompt_chain
from headrace.core.kvcache.tiers import TierConfig
from headrace.core.kvcache.transfers import Tier
from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.counters import Counters
from headrace.core.scheduler.events import SnapshotWanted
from headrace.core.scheduler.notes import Bound
from headrace.machine import Tick
from headrace.monitoring.freezing import FreezeError, freeze, thaw
from headrace.monitoring.step_journal import (
    FORMAT,
    DoneEntry,
    JournalDump,
    JournalError,
    StepDecision,
    StepJournal,
    ToldDecision,
)
from headrace.monitoring.step_replay import lines_of, read_journal
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec
from headrace.testing.replays import replayed
from headrace.types import KvSource, PriorityClass, ReplicaId, Request, RequestId

if TYPE_CHECKING:
    from headrace.testing.harness import EngineHarness

PLENTY = 1 << 24
ROOT = chain_root(salt=b"", model_identity="simulated", block_size=4)


class Journaled:
    """An engine with a journal that sees every event."""

    def __init__(
        self,
        *,
        max_bytes: int = PLENTY,
        steps_in_flight: int = 1,
        tiers: TierConfig | None = None,
    ) -> None:
        config = SchedulerConfig(
            max_num_seqs=4, max_num_batched_tokens=16, max_steps_in_flight=steps_in_flight
        )
        spec = simulated_spec(num_blocks=20)
        self.engine: EngineHarness = simulated_engine(spec, config, tiers=tiers)
        self.journal = StepJournal(self.engine.core, max_bytes=max_bytes)
        self.num_seen = 0
        self.random = random.Random(7)

    def run(self, num_requests: int) -> None:
        for _ in range(num_requests):
            self.submit()
            for _ in range(self.random.randrange(4)):
                if self.engine.store.pending:
                    self.engine.finish_transfer()
                if self.engine.num_in_flight:
                    failed = "stumbled" if self.random.random() < 0.02 else ""
                    self.engine.finish_step(failed=failed)
            if self.random.random() < 0.2:
                self.engine.abort(RequestId(f"r{self.random.randrange(num_requests)}"))
            self.see()
        self.engine.run_until_idle()
        self.engine.feed(Tick())
        self.engine.feed(SnapshotWanted("somebody"))
        self.see()

    def submit(self) -> None:
        pick, number = self.random, len(self.engine.journal.entries)
        length = pick.randrange(1, 60)
        prompt = tuple((i * 7 + pick.randrange(2)) % 1000 for i in range(length))
        self.engine.submit(
            Request(
                id=RequestId(f"r{number}"),
                prompt=prompt,
                max_tokens=pick.randrange(1, 30),
                sampling=GREEDY,
                chain_root=ROOT,
                chain=prompt_chain(ROOT, prompt, 4),
                priority=pick.choice(list(PriorityClass)),
                tenant=pick.choice("ab"),
                deadline=self.engine.now + 0.5 if pick.random() < 0.2 else None,
                source=KvSource(ReplicaId("r1"), "r1.kv", 9),  # which has nothing
            )
        )

    def see(self) -> None:
        """Tell the journal, event by event, what the harness saw."""
        entries = self.engine.journal.entries
        for now, event, effects in entries[self.num_seen :]:
            self.journal.observe(event, now, effects)
        self.num_seen = len(entries)


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_journal_from_the_start_replays_to_the_same_decisions(steps_in_flight: int):
    run = Journaled(steps_in_flight=steps_in_flight)
    run.run(60)
    (segment,) = run.journal.segments()
    found = replayed(segment)
    assert not found.parted
    assert not found.reason
    assert found.num_events == len(run.engine.journal.entries)
    assert found.num_steps > 100


def test_a_core_goes_on_from_a_state_in_the_midst_of_work():
    run = Journaled(steps_in_flight=2)
    run.run(20)
    run.submit()
    run.submit()
    run.engine.finish_step()
    run.see()
    journal = StepJournal(run.engine.core, max_bytes=PLENTY)
    begun = run.num_seen
    run.run(20)
    for now, event, effects in run.engine.journal.entries[begun:]:
        journal.observe(event, now, effects)
    found = replayed(journal.segments()[0])
    assert (found.parted, found.num_events) == ("", run.num_seen - begun)


@pytest.mark.parametrize(
    ("tier", "ways"), [(Tier.HOST, {"read", "store", "load"}), (Tier.PEER, {"load"})]
)
def test_transfers_between_tiers_and_from_neighbours_are_replayed_too(tier: Tier, ways: set[str]):
    run = Journaled(tiers=TierConfig(transfer_blocks=3, block_seconds={tier: 1e-6}))
    run.run(60)
    (segment,) = run.journal.segments()
    found = replayed(segment)
    assert (found.parted, found.reason) == ("", "")
    decisions = [d for line in lines_of(segment)[1] for d in line.decisions]
    told = [d.reason for d in decisions if isinstance(d, ToldDecision) and d.kind == "transfer"]
    assert {way.split()[0] for way in told} == ways


def test_a_journal_keeps_to_its_bytes_and_what_is_left_replays():
    # one event at a time, as a driver does: a state is written down between two events
    run = Journaled(max_bytes=400_000)
    for _ in range(160):
        run.submit()
        run.see()
        while run.engine.num_in_flight:
            run.engine.finish_step()
            run.see()
    segments = run.journal.segments()
    assert len(segments) == 2
    assert sum(map(len, segments)) < 410_000
    for segment in segments:
        found = replayed(segment)
        assert (found.parted, found.reason) == ("", "")
        assert found.num_steps > 10


def test_with_too_few_bytes_for_the_state_decisions_are_kept_and_the_reason_told():
    run = Journaled(max_bytes=3000)
    run.run(30)
    assert "state takes" in run.journal.error
    segments = run.journal.segments()
    assert sum(map(len, segments)) < 4000
    assert "raise journal_bytes" in replayed(segments[-1]).reason
    assert lines_of(segments[-1])[1]


def test_another_decision_is_shown_beside_the_one_of_then():
    run = Journaled()
    run.run(10)
    segment, lines = lines_of(run.journal.segments()[0])
    for index, line in enumerate(lines):
        if isinstance(line, DoneEntry) and index > 10:
            changed = msgspec.structs.replace(line, seconds=line.seconds, decisions=[])
            if line.decisions:
                segment.lines[index] = msgspec.msgpack.encode(changed)
                break
    found = replayed(msgspec.msgpack.encode(segment))
    assert found.num_events == index
    assert "then []" in found.parted


def test_steps_say_what_bounded_them_and_who_had_to_wait():
    run = Journaled()
    engine = run.engine
    for name, length, max_tokens in (("a", 30, 20), ("b", 30, 20), ("c", 40, 4)):
        prompt = tuple(ord(name) + i for i in range(length))
        engine.submit(
            Request(id=RequestId(name), prompt=prompt, max_tokens=max_tokens, sampling=GREEDY)
        )
    engine.run_until_idle()
    run.see()
    _, lines = lines_of(run.journal.segments()[0])
    steps = [d for line in lines for d in line.decisions if isinstance(d, StepDecision)]
    assert steps[0].rows == [(0, 0, 16)]
    assert steps[0].notes[4] == Bound.TOKENS
    assert any(step.notes[4] == Bound.MEMORY and step.notes[5] for step in steps)
    assert {step.step for step in steps} == set(range(len(steps)))


def test_refusals_are_decisions_with_their_reasons():
    run = Journaled()
    run.engine.submit(
        Request(id=RequestId("long"), prompt=tuple(range(200)), max_tokens=4, sampling=GREEDY)
    )
    run.see()
    _, lines = lines_of(run.journal.segments()[0])
    (decision,) = lines[0].decisions
    assert isinstance(decision, ToldDecision)
    assert (decision.kind, decision.subject) == ("reject", "long")
    assert decision.reason.startswith("context_length_exceeded: the prompt has 200 tokens")


@pytest.mark.parametrize("data", [b"", b"\x80", b"no journal"])
def test_what_is_no_journal_is_told(data: bytes):
    with pytest.raises(JournalError, match="no journal"):
        read_journal(data)


def test_a_journal_of_another_format_is_told():
    dump = JournalDump(
        format="another", version="1", python="3", replica="r", unix=0.0, reason="", segments=[]
    )
    with pytest.raises(JournalError, match=f"this version reads {FORMAT}"):
        read_journal(msgspec.msgpack.encode(dump))


@pytest.mark.interpreted
def test_an_object_of_a_compiled_class_is_not_made_without_its_constructor(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(Counters, "__mypyc_attrs__", ("evicted",), raising=False)
    with pytest.raises(FreezeError, match=r"Counters is compiled: `headrace replay` runs"):
        thaw([("object", "headrace.core.scheduler.counters:Counters", [])])


@pytest.mark.interpreted
def test_only_parts_of_a_core_are_frozen_or_thawed():
    with pytest.raises(FreezeError, match=r"random:Random cannot be frozen"):
        freeze([random.Random()])
    for name in ("subprocess:Popen", "headrace.core.nothing:Thing", "os:system"):
        with pytest.raises(FreezeError):
            thaw([("object", name, [])])
    with pytest.raises(FreezeError, match="no method"):
        thaw(
            [
                ("method", "__class__", [[1]]),
                ("object", "headrace.core.scheduler.counters:Counters", []),
            ]
        )
