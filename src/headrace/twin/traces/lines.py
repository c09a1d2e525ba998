"""Lines of a trace file, plain or gzip, and errors that say where the file is wrong."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, NoReturn

from headrace.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

MAX_LINE = 1 << 20
"""Characters; a 150,000-token prompt of Mooncake's trace takes 2,000."""


class Spot:
    """A place in a file, for errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 0

    def fail(self, what: str) -> NoReturn:
        """Raise UsageError: file, line and what is wrong there."""
        raise UsageError(f"{self.path}, line {self.line}: {what}")

    def whole_number(self, column: str, text: object, *, least: int) -> int:
        """Return a column's number, at least ``least``."""
        try:
            number = int(str(text)) if isinstance(text, (int, str)) else None
        except ValueError:
            number = None
        if number is None or isinstance(text, bool) or number < least:
            self.fail(f"{column} is {text!r}; it must be a whole number, {least} or more")
        return number


def lines_of(spot: Spot) -> Iterator[str]:
    """Yield the lines, and count them in ``spot``. Raises UsageError if they cannot be read."""
    path = spot.path
    try:
        yield from _lines(spot)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a whole gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not text: {error.reason}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error


def _lines(spot: Spot) -> Iterator[str]:
    with _open(spot.path) as file:
        while line := file.readline(MAX_LINE):
            spot.line += 1
            if len(line) == MAX_LINE:
                spot.fail(f"more than {MAX_LINE} characters: this is no trace")
            yield line.rstrip("\r\n")


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")
