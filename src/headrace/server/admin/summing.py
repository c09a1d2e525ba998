"""Figures of several gateways as one exposition in which counters never go back.

Counters and histograms are added up. Of a gateway that ended the last known numbers stay in the
sums, so that a restart is none to a scraper; what it counted after it was last asked (its farewell
is asked for, a kill leaves none) is missing. What every gateway tells alike
(figures of engines and of processes) is the largest value, other gauges are sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.monitoring import table
from headrace.monitoring.metrics import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.monitoring.metrics import Metric

_METRICS = {metric.name: metric for metric in table.GATEWAY_TABLE}
_OF_ENGINES = ("headrace_engine_", "headrace_kv_", "headrace_process_")
_OWN_COUNTS = (table.KV_CHANGES, table.KV_SNAPSHOTS)  # named like those, and each gateway's own
_OPINIONS = (
    table.BUILD,
    table.REPLICA_READY,
    table.REPLICA_STATE,
    table.PREFIX_INDEX_STATE,
    table.PREFIX_INDEX_ACCURACY,
)
_HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


class Totals:
    """Of all gateways, by name."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, float]] = {}  # gateway -> series -> number
        self._retired: dict[str, float] = {}
        self._heads: dict[str, str] = {}  # metric -> its HELP and TYPE lines

    def __bool__(self) -> bool:
        """Whether anything was ever told."""
        return bool(self._last or self._retired)

    def take(self, gateway: str, exposition: str) -> None:
        """Take what a gateway says now."""
        self._last[gateway] = dict(self._read(exposition))

    def forget_gauges(self, gateway: str) -> None:
        """A gateway is not there at the moment: what it has counted stays."""
        if gateway in self._last:
            last = self._last[gateway]
            self._last[gateway] = {key: last[key] for key in last if _is_counted(key)}

    def retire(self, gateway: str) -> None:
        """That process is gone, whoever comes in its place."""
        for key, number in self._last.pop(gateway, {}).items():
            if _is_counted(key):
                self._retired[key] = self._retired.get(key, 0) + number

    def exposition(self) -> str:
        """Return the sums as Prometheus text."""
        sums = dict(self._retired)
        for last in self._last.values():
            for key, number in last.items():
                if is_everywhere(_metric_of(key)):
                    sums[key] = max(sums.get(key, number), number)
                else:
                    sums[key] = sums.get(key, 0) + number
        lines: dict[str, list[str]] = {name: [head] for name, head in self._heads.items()}
        for key, number in sums.items():
            lines[_metric_of(key).name].append(f"{key} {_number(number)}\n")
        return "".join(line for group in lines.values() for line in group)

    def _read(self, exposition: str) -> Iterator[tuple[str, float]]:
        """Yield series and number; keep the lines about metrics."""
        name, head = "", ""
        for line in exposition.splitlines():
            if line.startswith("# HELP "):
                name, head = line.split(" ", 3)[2], line + "\n"
            elif line.startswith("# TYPE "):
                self._heads.setdefault(name, head + line + "\n")
            elif line:
                key, _, number = line.rpartition(" ")
                yield key, float(number)


def is_everywhere(metric: Metric) -> bool:
    """Whether every gateway tells the same of it, so that it must not be added up."""
    return metric in _OPINIONS or (
        metric.name.startswith(_OF_ENGINES) and metric not in _OWN_COUNTS
    )


def _metric_of(key: str) -> Metric:
    name = key.partition("{")[0]
    metric = _METRICS.get(name)
    if metric is None:
        for part in _HISTOGRAM_PARTS:
            metric = metric or _METRICS.get(name.removesuffix(part))
    assert metric is not None, key  # gateways are of this version
    return metric


def _is_counted(key: str) -> bool:
    metric = _metric_of(key)
    return metric.kind is not Kind.GAUGE and not is_everywhere(metric)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
