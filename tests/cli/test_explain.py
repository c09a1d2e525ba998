"""``headrace explain`` against a fake server, and the drawing of a waterfall."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.main import main
from headrace.cli.waterfall import Style, render
from headrace.monitoring.shapes import Span, TargetRow
from headrace.testing.fake_admin import FakeAdmin, sample_explanation, sample_state, serving_admin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLAIN = Style(columns=100, is_plain=True)
DRAWN = Style(columns=100, is_plain=False)


@contextmanager
def served(fake: FakeAdmin, directory: Path) -> Iterator[str]:
    """Serve ``fake`` from a thread, since the command blocks; yield the socket's path."""
    ready, ended = threading.Event(), threading.Event()
    place: list[str] = []

    async def serve() -> None:
        async with serving_admin(fake, directory) as places:
            place.append(str(places.admin))
            ready.set()
            await asyncio.to_thread(ended.wait, 20)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield place[0]
    finally:
        ended.set()
        thread.join(10)


@pytest.fixture
def fake() -> FakeAdmin:
    told = sample_explanation()
    return FakeAdmin(sample_state(), explanations={told.id: told})


def test_a_waterfall_in_plain_text_has_every_span_and_each_placement_with_its_reasons():
    lines = list(render(sample_explanation(), PLAIN))
    assert lines[:3] == [
        "chatcmpl-0001",
        "stop; tenant default; 120 prompt tokens, 64 of them cached; 40 output tokens",
        "first token after 50.0 ms, whole time 900.0 ms",
    ]
    text = "\n".join(lines)
    assert text.isascii()
    for span in sample_explanation().spans:
        assert span.note in text
    assert "sum                  900.0 ms" in text
    assert "3.0 ms -> r1  predicted_ttft: the least predicted time to a first token" in text
    assert "first token predicted after 44.0 ms, came after 47.0 ms" in text
    assert "first token predicted after 58.0 ms\n" in text  # it had come before
    assert "r1       cost 0.044        64 tokens cached  chosen" in text
    assert "r0       cost 0.093         0 tokens cached\n" in text


def test_a_terminal_gets_blocks_and_colours():
    text = "\n".join(render(sample_explanation(), DRAWN))
    assert "█" in text
    assert "\x1b[36m" in text


def test_class_and_targets_are_told_with_what_came_of_them():
    rows = [
        TargetRow(name="ttft", asked=0.04, got=0.05, missed=True),
        TargetRow(name="deadline", asked=9, got=None, missed=False),
    ]
    told = msgspec.structs.replace(sample_explanation(), priority="batch", targets=rows)
    lines = list(render(told, PLAIN))
    assert lines[1].startswith("stop; tenant default, class batch; ")
    assert lines[3:5] == [
        "target ttft          40.0 ms asked, 50.0 ms came: missed",
        "target deadline   9,000.0 ms asked, nothing came: kept",
    ]


def test_a_request_that_was_never_placed_is_told_so():
    told = msgspec.structs.replace(sample_explanation(), placements=[], ttft=None)
    text = "\n".join(render(told, PLAIN))
    assert "no first token" in text
    assert "it was never placed" in text


@given(
    st.lists(st.floats(0, 1000), max_size=12),
    st.integers(20, 300),
    st.booleans(),
)
def test_bars_follow_each_other_and_stay_inside_their_width(
    seconds: list[float], columns: int, is_plain: bool
):
    style = Style(columns=columns, is_plain=is_plain)
    whole = sum(seconds)
    begin = 0.0
    for each in seconds:
        bar = style.bar(begin / (whole or 1), each / (whole or 1), 40)
        assert 1 <= len(bar.strip(" ")) <= 40
        assert len(bar) <= 40
        begin += each
    spans = [Span(name="decode", start=0, seconds=each) for each in seconds]
    told = msgspec.structs.replace(sample_explanation(), seconds=whole, spans=spans)
    assert len(list(render(told, style))) > len(seconds)


def test_a_request_is_explained_by_its_id(
    fake: FakeAdmin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with served(fake, tmp_path) as admin:
        assert main(["explain", "chatcmpl-0001", "--admin", admin]) == 0
    out = capsys.readouterr().out
    assert out.startswith("chatcmpl-0001\n")
    assert "\x1b" not in out


def test_the_newest_request_is_explained_as_json(
    fake: FakeAdmin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with served(fake, tmp_path) as admin:
        assert main(["explain", "--last", "--json", "--admin", admin]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == msgspec.to_builtins(sample_explanation())


def test_an_id_with_odd_characters_arrives_as_it_is(
    fake: FakeAdmin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fake.explanations["job/7?x=1 #é"] = sample_explanation()
    with served(fake, tmp_path) as admin:
        assert main(["explain", "job/7?x=1 #é", "--admin", admin]) == 0
    capsys.readouterr()


def test_an_unknown_id_is_one_line_and_exit_code_1(
    fake: FakeAdmin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with served(fake, tmp_path) as admin:
        assert main(["explain", "nothing", "--admin", admin]) == 1
    assert capsys.readouterr().err == "headrace: no request nothing among the last 1\n"


def test_the_last_of_no_requests_is_told(
    fake: FakeAdmin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fake.state = msgspec.structs.replace(fake.state, gateway=None)
    with served(fake, tmp_path) as admin:
        assert main(["explain", "--last", "--admin", admin]) == 1
    assert "no request so far" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["an-id", "--last"]])
def test_exactly_one_request_must_be_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["explain", *arguments]) == 2
    assert "by its id, or use --last" in capsys.readouterr().err


def test_without_a_server_it_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["explain", "x", "--admin", str(tmp_path / "none.sock")]) == 3
    assert "none.sock" in capsys.readouterr().err
