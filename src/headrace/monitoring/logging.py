"""Structured logs on stderr, as text or as one JSON object a line.

An event has a short message and fields: ``event(log, INFO, "replica is lost", replica=..)``.
Prompts, outputs and keys are never fields. Control characters are escaped in both formats, so
that nothing a client sends can forge a line.
"""

from __future__ import annotations

import json
import logging
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, TextIO, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Field: TypeAlias = str | int | float | bool | None

_FIELDS = "headrace_fields"


class LogFormat(StrEnum):
    """How a line looks."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """What is written: this and what is graver."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def event(log: logging.Logger, level: int, message: str, **fields: Field) -> None:
    """Log one event with its fields."""
    if log.isEnabledFor(level):
        log.log(level, message, extra={_FIELDS: fields})


def _fields(record: logging.LogRecord) -> Mapping[str, Field]:
    found = record.__dict__.get(_FIELDS, {})
    assert isinstance(found, dict)
    return found


class TextFormatter(logging.Formatter):
    """``12:03:44.120 INFO engine[r0] replica is lost replica=r0 seconds=1.5``."""

    def __init__(self, process: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        time = f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03}"
        parts = [f"{time} {record.levelname} {self._process} {_printable(record.getMessage())}"]
        parts += [f"{name}={_printable(str(value))}" for name, value in _fields(record).items()]
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, process, logger, message, then the fields."""

    def __init__(self, process: str) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S")
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line: dict[str, Field] = {
            "time": f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03}",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, allow_nan=True, default=str)


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def configure_logging(
    *, process: str, format: LogFormat, level: LogLevel, stream: TextIO | None = None
) -> None:
    """Send this process's events to ``stream`` (stderr); replaces what was configured before."""
    output = logging.StreamHandler(stream or sys.stderr)
    match format:
        case LogFormat.TEXT:
            output.setFormatter(TextFormatter(process))
        case LogFormat.JSON:
            output.setFormatter(JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(level.upper())
