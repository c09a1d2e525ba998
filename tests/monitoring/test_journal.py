"""The decision journal: a ring, and a file that never stops a server."""

from __future__ import annotations

import logging
import stat
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headrace.monitoring.journal import Journal, JournalFile
from headrace.monitoring.shapes import JournalEntry

if TYPE_CHECKING:
    import pytest


def journal(file: JournalFile | None = None, *, max_entries: int = 100) -> Journal:
    times = count()
    return Journal(
        unix_time=lambda: float(next(times)), source="router", file=file, max_entries=max_entries
    )


def read(path: Path) -> list[JournalEntry]:
    return [msgspec.json.decode(line, type=JournalEntry) for line in path.read_bytes().splitlines()]


def numbers(entries: list[JournalEntry]) -> list[int]:
    return [entry.number for entry in entries]


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 70), st.integers(1, 30))
def test_it_keeps_the_newest_in_order(num_added: int, size: int, after: int, limit: int):
    book = journal(max_entries=size)
    for index in range(num_added):
        book.add("dispatch", f"request {index}", "because")
    expected = [n for n in range(1, num_added + 1)[-size:] if n > after][-limit:]
    assert numbers(book.after(after, limit=limit)) == expected


def test_an_entry_says_who_decided_what_about_whom_and_why():
    book = journal()
    book.add("dispatch", "q#0", "to r0: nearest")
    book.add("scaled", "1 to 2", "queue", source="autoscaler")
    first, second = book.after(0)
    assert (first.source, first.kind, first.subject) == ("router", "dispatch", "q#0")
    assert (first.reason, first.unix) == ("to r0: nearest", 0.0)
    assert second.source == "autoscaler"


class Told:
    """Counts how often it is put in words."""

    def __init__(self) -> None:
        self.times = 0

    def __str__(self) -> str:
        self.times += 1
        return "nearest"


def test_a_reason_is_put_together_when_somebody_reads_it(tmp_path: Path):
    told, book = Told(), journal()
    book.add("dispatch", "q#0", "to ", "r0", ": ", told)
    assert told.times == 0
    assert book.after(0)[0].reason == "to r0: nearest"
    journal(JournalFile(tmp_path / "journal")).add("dispatch", "q#0", told)
    assert told.times == 2
    assert read(tmp_path / "journal")[0].reason == "nearest"


def test_the_file_has_every_entry_as_a_line_and_is_private(tmp_path: Path):
    path = tmp_path / "journal"
    book = journal(JournalFile(path), max_entries=1)
    for index in range(3):
        book.add("fail", f"q{index}", "two\nlines")
    book.close()
    assert numbers(read(path)) == [1, 2, 3]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    book.add("fail", "q3", "goes on after a close")
    book.close()
    assert numbers(read(path)) == [1, 2, 3, 4]


def test_a_file_that_is_too_long_is_put_aside_once(tmp_path: Path):
    path = tmp_path / "journal"
    one, two = (journal(JournalFile(path, max_bytes=1000)) for _ in range(2))
    for index in range(40):
        one.add("dispatch", f"one {index}", "because")
        two.add("dispatch", f"two {index}", "because")
    one.close()
    two.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal", "journal.1"]
    assert path.stat().st_size < 1200
    aside = tmp_path / "journal.1"
    assert 1000 <= aside.stat().st_size < 1400
    last = [entry.subject for entry in [*read(aside), *read(path)]]
    together = [f"{who} {index}" for index in range(40) for who in ("one", "two")]
    assert sorted(last[-6:]) == sorted(together[-6:]), "lines of both writers, none cut"


def test_the_first_write_error_ends_the_file_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    book = journal(JournalFile(tmp_path / "missing" / "journal"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            book.add("dispatch", "q", "because")
    assert len(caplog.records) == 1
    assert numbers(book.after(0)) == [1, 2, 3], "the ring goes on"


def test_a_full_disk_is_such_an_error(caplog: pytest.LogCaptureFixture):
    file = JournalFile(Path("/dev/full"))
    book = journal(file)
    with caplog.at_level(logging.WARNING):
        book.add("dispatch", "q", "because")
        book.add("dispatch", "q", "because")
    assert len(caplog.records) == 1
    book.close()
