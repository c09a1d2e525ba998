"""Figures of one process, and their text for Prometheus.

What a metric is called and means stands in table.py, once. A Registry holds the numbers: it lives
on one thread, so that a count is an addition and needs no lock. Engines have no registry; their
figures come to the gateway with load reports (see engine_figures.py).

Format: Prometheus text exposition 0.0.4.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_SERIES = 1000
"""Label combinations of one metric; further ones are counted under OTHER."""

OTHER = "_other"


class Kind(StrEnum):
    """What may be done with a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of the table. Names follow Prometheus: base units, ``_total`` on counters."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # upper bounds, rising, of a histogram


class _Histogram:
    """Counts by bucket. ``counts[i]`` are the values in (bounds[i-1], bounds[i]]."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0


class Registry:
    """The numbers of a process, for the metrics it was given.

    ``labels`` are the values of ``metric.labels``, in that order.
    """

    def __init__(self, table: Iterable[Metric]) -> None:
        self._numbers: dict[str, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[str, dict[tuple[str, ...], _Histogram]] = {}
        self._table = tuple(table)
        for metric in self._table:
            if metric.kind is Kind.HISTOGRAM:
                self._histograms[metric.name] = {}
            else:
                self._numbers[metric.name] = {}
            if not metric.labels:
                self._start(metric)

    def add(self, metric: Metric, *labels: str, amount: float = 1) -> None:
        """Count something; with a negative amount only on gauges."""
        assert amount >= 0 or metric.kind is Kind.GAUGE, metric.name
        series = self._numbers[metric.name]
        if labels in series:
            series[labels] += amount
        else:
            key = _bounded(series, labels)
            series[key] = series.get(key, 0) + amount

    def put(self, metric: Metric, *labels: str, value: float) -> None:
        """Set a gauge, or a counter that is kept elsewhere."""
        series = self._numbers[metric.name]
        series[_bounded(series, labels)] = value

    def observe(self, metric: Metric, *labels: str, value: float, times: int = 1) -> None:
        """Put a value into a histogram, ``times`` times."""
        series = self._histograms[metric.name]
        histogram = series.get(labels)
        if histogram is None:
            key = _bounded(series, labels)
            histogram = series.setdefault(key, _Histogram(metric.buckets))
        histogram.counts[bisect_left(histogram.bounds, value)] += times
        histogram.total += value * times

    def drop(self, metric: Metric, *labels: str) -> None:
        """Forget the series whose first labels are these (a replica that is gone)."""
        series = self._numbers[metric.name]
        for key in [key for key in series if key[: len(labels)] == labels]:
            del series[key]

    def value(self, metric: Metric, *labels: str) -> float:
        """Return a counter or gauge (0 where nothing was counted), a histogram's count."""
        if metric.kind is Kind.HISTOGRAM:
            histogram = self._histograms[metric.name].get(labels)
            return 0 if histogram is None else sum(histogram.counts)
        return self._numbers[metric.name].get(labels, 0)

    def exposition(self) -> str:
        """Return all numbers as Prometheus text."""
        return "".join(line + "\n" for metric in self._table for line in self._lines(metric))

    def _start(self, metric: Metric) -> None:
        """A metric without labels is there from the start, as 0."""
        if metric.kind is Kind.HISTOGRAM:
            self._histograms[metric.name][()] = _Histogram(metric.buckets)
        else:
            self._numbers[metric.name][()] = 0

    def _lines(self, metric: Metric) -> Iterator[str]:
        yield f"# HELP {metric.name} {_escape_help(metric.help)}"
        yield f"# TYPE {metric.name} {metric.kind}"
        if metric.kind is not Kind.HISTOGRAM:
            for labels, value in self._numbers[metric.name].items():
                yield f"{metric.name}{_label_text(metric.labels, labels)} {_number(value)}"
            return
        for labels, histogram in self._histograms[metric.name].items():
            names = (*metric.labels, "le")
            bounds = (*(_number(bound) for bound in histogram.bounds), "+Inf")
            for bound, count in zip(bounds, accumulate(histogram.counts), strict=True):
                yield f"{metric.name}_bucket{_label_text(names, (*labels, bound))} {count}"
            text = _label_text(metric.labels, labels)
            yield f"{metric.name}_sum{text} {_number(histogram.total)}"
            yield f"{metric.name}_count{text} {sum(histogram.counts)}"


def _bounded(
    series: dict[tuple[str, ...], float] | dict[tuple[str, ...], _Histogram],
    labels: tuple[str, ...],
) -> tuple[str, ...]:
    if labels in series or len(series) < MAX_SERIES:
        return labels
    return (OTHER,) * len(labels)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _label_text(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape(text: str) -> str:
    return _escape_help(text).replace('"', '\\"')
