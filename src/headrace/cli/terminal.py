"""What commands draw on a terminal: one progress bar, lines otherwise."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from headrace.config import Environment

_BAR_WIDTH = 30
_MEGABYTE = 1_000_000


def draws_bars(environment: Environment, stream: TextIO | None = None) -> bool:
    """Whether a bar may be drawn: on a terminal, and nobody asked for plain output."""
    return (stream or sys.stderr).isatty() and not environment.wants_plain_output


class Progress:
    """How far a transfer of bytes is: ``label [#####.....]  47%  44 of 93 MB``.

    On a terminal one line is drawn again and again, and gone at the end; elsewhere one line is
    written, once, when the transfer begins.
    """

    def __init__(self, label: str, *, draws_bars: bool, stream: TextIO | None = None) -> None:
        self._label = label
        self._draws_bars = draws_bars
        self._stream = stream or sys.stderr
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last and self._draws_bars:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()

    def update(self, done: int, total: int | None) -> None:
        """Show ``done`` of ``total`` bytes."""
        if self._draws_bars:
            self._draw(self._bar(done, total))
        elif not self._last:
            self._last = f"{self._label} ({total / _MEGABYTE:.0f} MB)" if total else self._label
            self._stream.write(self._last + "\n")

    def _bar(self, done: int, total: int | None) -> str:
        if not total:
            return f"{self._label} {done / _MEGABYTE:.0f} MB"
        fraction = min(done / total, 1.0)
        filled = int(fraction * _BAR_WIDTH)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        amount = f"{done / _MEGABYTE:.0f} of {total / _MEGABYTE:.0f} MB"
        return f"{self._label} [{bar}] {fraction:4.0%}  {amount}"

    def _draw(self, line: str) -> None:
        if line == self._last:
            return
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{line[:width]:<{min(len(self._last), width)}}")
        self._stream.flush()
        self._last = line
