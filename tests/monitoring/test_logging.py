"""Logs: one line an event, which nobody can forge."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from headrace.monitoring.logging import LogFormat, LogLevel, configure_logging, event

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = logging.getLogger("headrace.test")
FORGED = "x\n12:00:00.000 INFO g0 all is well\x1b[31m"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    yield
    root.handlers[:] = kept
    root.setLevel(level)


def configured(log_format: LogFormat, level: LogLevel = LogLevel.INFO) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(process="g0", format=log_format, level=level, stream=stream)
    return stream


def test_text_lines_have_time_level_process_message_and_fields():
    stream = configured(LogFormat.TEXT)
    event(LOG, logging.WARNING, "replica is lost", replica="r0", seconds=1.5)
    time, rest = stream.getvalue().rstrip("\n").split(" ", 1)
    assert rest == "WARNING g0 replica is lost replica=r0 seconds=1.5"
    assert len(time) == len("12:00:00.000")


def test_json_lines_have_the_same():
    stream = configured(LogFormat.JSON)
    event(LOG, logging.INFO, "replica is lost", replica="r0", ok=False, nothing=None)
    line = json.loads(stream.getvalue())
    assert line.pop("time")
    assert line == {
        "level": "info",
        "process": "g0",
        "logger": "headrace.test",
        "message": "replica is lost",
        "replica": "r0",
        "ok": False,
        "nothing": None,
    }


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_no_client_can_write_a_line_of_its_own(log_format: LogFormat):
    stream = configured(log_format)
    event(LOG, logging.INFO, FORGED, field=FORGED)
    LOG.info("%s", FORGED)
    assert stream.getvalue().count("\n") == 2
    assert "\x1b" not in stream.getvalue()


def test_levels_below_the_configured_one_are_not_written():
    stream = configured(LogFormat.TEXT, LogLevel.ERROR)
    event(LOG, logging.WARNING, "no")
    event(LOG, logging.ERROR, "yes")
    assert "no" not in stream.getvalue()
    assert "yes" in stream.getvalue()


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_a_traceback_is_kept(log_format: LogFormat):
    stream = configured(log_format)
    try:
        raise ValueError("seven")
    except ValueError:
        LOG.exception("it failed")
    assert "ValueError: seven" in stream.getvalue()
