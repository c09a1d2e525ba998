"""replay, and journal --engine, on files of a small engine."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import msgspec
import pytest

from headrace import __version__
from headrace.cli.journal import written_by
from headrace.cli.main import main
from headrace.errors import UsageError
from headrace.monitoring.step_journal import FORMAT, JournalDump, StepJournal
from headrace.testing.engines import GREEDY, simulated_engine
from headrace.testing.fake_admin import sample_state
from headrace.types import Request, RequestId

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    engine = simulated_engine()
    journal = StepJournal(engine.core, max_bytes=1 << 20)
    for name, prompt in (("a", range(20)), ("long", range(300))):
        engine.submit(
            Request(id=RequestId(name), prompt=tuple(prompt), max_tokens=6, sampling=GREEDY)
        )
    engine.run_until_idle()
    for now, event, effects in engine.journal.entries:
        journal.observe(event, now, effects)
    path = tmp_path / "r0.journal"
    path.write_bytes(msgspec.msgpack.encode(dump_of(journal.segments())))
    return path


def dump_of(segments: list[bytes]) -> JournalDump:
    return JournalDump(
        format=FORMAT,
        version=__version__,
        python="3.0.0",
        replica="r0",
        unix=1.75e9,
        reason="a test",
        segments=segments,
    )


def test_a_journal_is_replayed_to_the_same_decisions(
    file: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["replay", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("r0, 2025-06-1")
    assert lines[1].endswith("on Python 3.0.0: decisions may differ")
    assert lines[2] == "part 0: the same decisions, 8 events, 6 steps; to the end"


def test_decisions_are_shown_with_their_reasons(file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["replay", "--show", str(file)]) == 0
    text = capsys.readouterr().out
    assert "submit a: 20 tokens" in text
    assert "plan 0: 1 rows [0@0+20], bound by work" in text
    assert "reject long: context_length_exceeded: the prompt has 300 tokens" in text


def test_code_that_decides_otherwise_is_found(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("headrace.core.scheduler.rows.Rows.decode", lambda *_: None)
    assert main(["replay", str(file)]) == 1
    assert "part 0: another decision after 2 events" in capsys.readouterr().out


def test_a_file_that_is_not_there_or_no_journal_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "x"
    assert main(["replay", str(path)]) == 1
    assert "No such file" in capsys.readouterr().err
    path.write_bytes(b"no")
    assert main(["replay", str(path)]) == 1
    assert "this is no journal of an engine" in capsys.readouterr().err


def test_an_engine_is_asked_for_its_journal_by_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    state = sample_state()
    row = next(row for row in state.replicas if row.pid)
    asked: list[tuple[int, int]] = []
    path = tmp_path / f"{row.replica}-{row.pid}-1.journal"

    def kill(pid: int, number: int) -> None:
        asked.append((pid, number))
        path.touch()

    monkeypatch.setattr(os, "kill", kill)
    assert written_by(row.replica, state, tmp_path) == path
    assert asked == [(row.pid, signal.SIGUSR1)]
    with pytest.raises(UsageError, match="no engine 'nobody' here: there are"):
        written_by("nobody", state, tmp_path)
