"""A progress line on a terminal, nothing elsewhere."""

from __future__ import annotations

from typing import TextIO

BAR_WIDTH = 30


class TerminalProgress:
    """Redraws one line. Used on a terminal only: see ``for_stream``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, *, done: int, failed: int, total: int) -> None:
        filled = BAR_WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        failures = f", {failed} failed" if failed else ""
        self._stream.write(f"\r[{bar}] {done}/{total}{failures} ")
        self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        self._stream.write("\r\x1b[K")
        self._stream.flush()


class NoProgress:
    """Shows nothing."""

    def update(self, *, done: int, failed: int, total: int) -> None:
        pass

    def close(self) -> None:
        pass


def for_stream(stream: TextIO) -> TerminalProgress | NoProgress:
    """Return a bar if ``stream`` is a terminal."""
    return TerminalProgress(stream) if stream.isatty() else NoProgress()
