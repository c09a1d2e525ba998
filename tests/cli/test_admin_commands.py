"""ps, drain, scale and journal against a fake server."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from headrace.cli.main import main
from headrace.cli.ps import duration, page
from headrace.monitoring.shapes import DrainOrder, JournalEntry, ScaleOrder
from headrace.testing.fake_admin import FakeAdmin, sample_state, serving_admin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def served(fake: FakeAdmin, directory: Path) -> Iterator[str]:
    """Serve ``fake`` from a thread, since commands block; yield the socket's path."""
    ready, ended = threading.Event(), threading.Event()
    places: list[str] = []

    async def serve() -> None:
        async with serving_admin(fake, directory) as place:
            places.append(str(place.admin))
            ready.set()
            await asyncio.to_thread(ended.wait, 20)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield places[0]
    finally:
        ended.set()
        thread.join(10)


def test_ps_shows_replicas_and_a_summary():
    lines = page(sample_state()).splitlines()
    assert lines[0].split() == [
        *("REPLICA", "STATE", "PID", "REQUESTS", "KV", "CACHED", "INDEX", "SINCE", "RESTARTS")
    ]
    assert lines[1].split() == [
        "r0",
        "ready",
        "4711",
        "3",
        "(1",
        "wait)",
        "31%",
        "62%",
        "degraded",
        "71%",
        "1h00m",
        "0",
    ]
    assert lines[2].split()[:3] == ["r1", "draining", "-"]
    assert "policy    predicted_ttft" in lines
    assert "scaling   2 wanted, 1 to 3 allowed" in lines
    assert "last      1 to 2: TTFT over target" in lines


def test_ps_shows_roles_where_there_are_some():
    state = sample_state()
    first, *others = state.replicas
    lines = page(replace(state, replicas=[replace(first, role="prefill"), *others])).splitlines()
    assert lines[0].split()[:3] == ["REPLICA", "ROLE", "STATE"]
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["r0", "prefill", "ready"],
        ["r1", "mixed", "draining"],
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0s"), (59.9, "59s"), (303, "5m03s"), (7620, "2h07m")]
)
def test_durations_are_short(seconds: float, text: str):
    assert duration(seconds) == text


def test_ps_prints_where_the_console_is():
    url = "http://127.0.0.1:8001/#token=abc"
    assert f"console   {url}" in page(replace(sample_state(), console=url)).splitlines()
    assert "console" not in page(sample_state())


def test_goodput_is_shown_where_requests_have_targets():
    state = sample_state()
    assert "goodput" not in page(state)
    assert state.gateway is not None
    rates = replace(state.gateway.rates, with_targets=2.0, goodput=1.5)
    measured = replace(state, gateway=replace(state.gateway, rates=rates))
    assert "goodput   1.5 requests/s, 75% within targets" in page(measured).splitlines()


def test_ps_json_is_the_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with served(FakeAdmin(sample_state()), tmp_path) as admin:
        assert main(["ps", "--json", "--admin", admin]) == 0
        assert json.loads(capsys.readouterr().out)["ceiling"] == 3


def test_orders_reach_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fake = FakeAdmin(sample_state())
    with served(fake, tmp_path) as admin:
        assert main(["drain", "r1", "--admin", admin]) == 0
        assert main(["drain", "r1", "--cancel", "--admin", admin]) == 0
        assert main(["scale", "2", "--admin", admin]) == 0
        assert main(["scale", "1:4", "--admin", admin]) == 0
    assert fake.orders == [
        DrainOrder(replica="r1"),
        DrainOrder(replica="r1", cancel=True),
        ScaleOrder(floor=2, ceiling=2),
        ScaleOrder(floor=1, ceiling=4),
    ]
    assert capsys.readouterr().out.splitlines() == ["draining", "draining", "scaling", "scaling"]


def test_the_journal_is_a_line_for_each_decision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    entries = [
        JournalEntry(
            number=i,
            unix=1.8e9 + i,
            source="router",
            kind="go_on",
            subject=f"q{i}",
            reason="r0 is gone",
        )
        for i in range(1, 4)
    ]
    with served(FakeAdmin(sample_state(), journal=entries), tmp_path) as admin:
        assert main(["journal", "--last", "2", "--admin", admin]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert lines[1].endswith("router     go_on    q3: r0 is gone")
        assert main(["journal", "--json", "--admin", admin]) == 0
        numbers = [json.loads(line)["number"] for line in capsys.readouterr().out.splitlines()]
        assert numbers == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("ps",), 3, "headrace: no headrace server is running here (looked in {tmp}/no.sock);"),
        (("scale", "3:1"), 2, "headrace: the range is '3:1': the floor 3 is above the ceiling 1"),
        (("scale", "x"), 2, "headrace: the range is 'x': write a number"),
        (("drain", "r1"), 3, "headrace: no headrace server is running here"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert main([*arguments, "--admin", str(tmp_path / "no.sock")]) == code
    errors = capsys.readouterr().err
    assert errors.startswith(words.format(tmp=tmp_path))
    assert errors.count("\n") == 1


def test_without_a_path_the_runtime_directory_is_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(["ps"]) == 3
    assert f"looked in {tmp_path}/headrace-*/admin.sock" in capsys.readouterr().err
    directory = tmp_path / "headrace-abc"
    directory.mkdir()
    with served(FakeAdmin(sample_state()), directory):
        assert main(["ps"]) == 0
