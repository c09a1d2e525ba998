"""Writes docs/metrics.md: ``python -m headrace.monitoring.reference > docs/metrics.md``."""

from __future__ import annotations

import sys

from headrace.monitoring.table import CONTROLLER_TABLE, GATEWAY_TABLE

_HEAD = """# Metrics

Written from `headrace/monitoring/table.py`; do not edit. `GET /metrics` of a server answers in
Prometheus text format: the gateway's figures and those of its engines, which come with their
load reports and heartbeats, a few times a second. The admin plane adds the controller's.
Times are seconds.

| name | kind | labels | meaning |
|---|---|---|---|
"""


def reference() -> str:
    """Return the page."""
    rows = (
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '-'} | {metric.help} |\n"
        for metric in dict.fromkeys((*GATEWAY_TABLE, *CONTROLLER_TABLE))
    )
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(reference())
