"""An Explanation as lines of text: one bar for each span, and each placement with its reasons.

::

    prefill       r1     43.0 ms  |    ####                  1 chunk, 64 of 120 tokens cached
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.monitoring.shapes import CandidateRow, Explanation, PlacementRow, Span
    from headrace.types import Seconds

MIN_BAR = 20  # columns
MAX_BAR = 48
_NOTE = 34  # columns for what is said beside a bar
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COLOURS = {"prefill": 33, "decode": 36, "move": 31, "queue": 35, "engine queue": 35}
"""By span, as SGR codes (ECMA-48)."""
_GREY = 90
_BOLD = 1
_RED = 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How to draw. ``is_plain``: ASCII only and no colours."""

    columns: int
    is_plain: bool

    def paint(self, text: str, code: int) -> str:
        """Colour a text."""
        return text if self.is_plain or not text else f"\x1b[{code}m{text}\x1b[0m"

    def bar(self, begin: float, length: float, width: int) -> str:
        """Draw a bar: ``begin`` and ``length`` are shares of ``width`` columns. Never invisible.

        Characters are filled from the left only, so a bar begins at a whole column.
        """
        first = min(int(begin * width), width - 1)
        eighths = max(1, round(length * width * 8))
        eighths = min(eighths, (width - first) * 8)
        if self.is_plain:
            return " " * first + "#" * max(1, round(eighths / 8))
        whole, rest = divmod(eighths, 8)
        return " " * first + "█" * whole + _EIGHTHS[rest].strip()


def render(told: Explanation, style: Style) -> Iterator[str]:
    """Yield the lines of an explanation."""
    yield style.paint(told.id, _BOLD)
    yield (
        f"{told.state}; tenant {told.tenant}{_class(told)}; {told.prompt_tokens} prompt tokens, "
        f"{told.cached_tokens} of them cached; {told.output_tokens} output tokens"
    )
    first = "no first token" if told.ttft is None else f"first token after {_ms(told.ttft)}"
    yield f"{first}, whole time {_ms(told.seconds)}"
    yield from _targets(told, style)
    yield ""
    yield from _waterfall(told, style)
    if not told.placements:
        yield "it was never placed"
    for index, placement in enumerate(told.placements):
        yield from _placement(placement, _actual(told, index), style)


def _class(told: Explanation) -> str:
    return f", class {told.priority}" if told.priority else ""


def _targets(told: Explanation, style: Style) -> Iterator[str]:
    for target in told.targets:
        came = "nothing came" if target.got is None else f"{_ms(target.got)} came"
        verdict = style.paint("missed", _RED) if target.missed else "kept"
        yield f"target {target.name:<8} {_ms(target.asked):>12} asked, {came}: {verdict}"


def _waterfall(told: Explanation, style: Style) -> Iterator[str]:
    names = max((len(span.name) for span in told.spans), default=0)
    replicas = max((len(span.replica) for span in told.spans), default=0)
    left = names + replicas + 17  # with the time and what is between
    width = max(MIN_BAR, min(MAX_BAR, style.columns - left - _NOTE))
    room = style.columns - left - width - 2
    for span in told.spans:
        bar = _span_bar(span, told.seconds, style, width)
        line = f"{span.name:<{names}}  {span.replica:<{replicas}} {_ms(span.seconds):>12}  {bar}"
        note = style.paint(span.note, _GREY)
        if len(span.note) <= room:
            yield f"{line}  {note}".rstrip()
        else:  # below the bars: a wrapped line would be harder to read
            yield line.rstrip()
            yield " " * left + note
    total = sum(span.seconds for span in told.spans)
    yield f"{'sum':<{names}}  {'':<{replicas}} {_ms(total):>12}"


def _span_bar(span: Span, whole: Seconds, style: Style, width: int) -> str:
    whole = whole or 1.0
    bar = style.bar(span.start / whole, span.seconds / whole, width)
    return style.paint(bar, _COLOURS.get(span.name, _GREY)) + " " * (width - len(bar))


def _actual(told: Explanation, index: int) -> Seconds | None:
    """Return when the first token came after a placement, None if it came after another one."""
    begin = told.placements[index].at
    later = told.placements[index + 1].at if index + 1 < len(told.placements) else None
    if told.ttft is None or told.ttft < begin or (later is not None and later <= told.ttft):
        return None
    return told.ttft - begin


def _placement(placement: PlacementRow, actual: Seconds | None, style: Style) -> Iterator[str]:
    yield ""
    where = style.paint(f"-> {placement.replica}", _BOLD)
    yield f"{_ms(placement.at)} {where}  {placement.policy}: {placement.reason}"
    if placement.predicted_ttft is not None:
        came = "" if actual is None else f", came after {_ms(actual)}"
        yield f"  first token predicted after {_ms(placement.predicted_ttft)}{came}"
    chosen = placement.replica
    for candidate in sorted(placement.candidates, key=lambda c: (c.cost, c.replica != chosen)):
        yield _candidate(candidate, placement, style)


def _candidate(candidate: CandidateRow, placement: PlacementRow, style: Style) -> str:
    line = (
        f"  {candidate.replica:<8} cost {candidate.cost:<8.3g} "
        f"{candidate.cached_tokens:>6} tokens cached"
    )
    if candidate.replica == placement.replica:
        return f"{line}  chosen"
    return style.paint(line, _GREY)


def _ms(seconds: Seconds) -> str:
    return f"{seconds * 1000:,.1f} ms"
