"""The demo on a terminal: one live line below the events, or plain lines where there is none."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import Seconds

BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 60
PLAIN_EVERY_S = 10.0
_DIM, _RED, _GREEN, _YELLOW, _BOLD, _PLAIN = (f"\x1b[{code}m" for code in (2, 31, 32, 33, 1, 0))
STYLES = {"died": _RED, "moved": _GREEN, "scale": _YELLOW, "good": _GREEN, "bad": _RED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The server and its clients at one time."""

    at: Seconds
    rate: float
    ready: int
    ceiling: int
    running: int
    done: int
    failed: int
    moved: int
    tokens_per_s: float

    def __str__(self) -> str:
        dots = "●" * self.ready + "○" * max(0, self.ceiling - self.ready)
        return (
            f"{clock(self.at)}  load {self.rate:4.1f}/s  replicas {dots}  running {self.running:3d}"
            f"  done {self.done:4d}  failed {self.failed}  moved {self.moved:2d}"
            f"  {self.tokens_per_s:4.0f} tokens/s"
        )


class Screen:
    """Prints. On a terminal the live line is drawn over itself."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._live = ""
        self._last_plain = -PLAIN_EVERY_S

    def say(self, text: str = "", style: str = "") -> None:
        """Print a line that stays."""
        self._erase()
        print(self._styled(text, style), flush=True)
        self._draw()

    def live(self, look: Look) -> None:
        """Show how it is now."""
        if self._is_terminal:
            self._erase()
            self._live = f"  {look}"
            self._draw()
        elif look.at - self._last_plain >= PLAIN_EVERY_S:
            self._last_plain = look.at
            print(f"  {look}", flush=True)

    def end_live(self) -> None:
        """Take the live line away."""
        self._erase()
        self._live = ""

    def bold(self, text: str) -> str:
        """Return text in bold where that can be."""
        return f"{_BOLD}{text}{_PLAIN}" if self._is_terminal else text

    def _styled(self, text: str, style: str) -> str:
        code = STYLES.get(style, "")
        return f"{code}{text}{_PLAIN}" if self._is_terminal and code else text

    def _erase(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="")

    def _draw(self) -> None:
        if self._live:
            columns = shutil.get_terminal_size().columns
            print(f"{_DIM}{self._live[: columns - 1]}{_PLAIN}", end="", flush=True)


def clock(seconds: Seconds) -> str:
    """Return minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def spark(values: Sequence[float], *, top: float) -> str:
    """Draw values in ``SPARK_WIDTH`` bars; each is the mean of its part."""
    if not values:
        return ""
    bars = []
    for column in range(SPARK_WIDTH):
        low = column * len(values) // SPARK_WIDTH
        high = max(low + 1, (column + 1) * len(values) // SPARK_WIDTH)
        mean = sum(values[low:high]) / len(values[low:high])
        bars.append(BARS[min(len(BARS) - 1, round(mean / top * (len(BARS) - 1)))])
    return "".join(bars)
