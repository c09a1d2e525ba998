"""GET /metrics: the controller's own figures among those of the gateway."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from headrace.monitoring import table
from headrace.monitoring.engine_figures import record_process
from headrace.monitoring.metrics import Registry
from headrace.server.admin.state import replica_rows
from headrace.server.vitals import vitals

if TYPE_CHECKING:
    from headrace.server.controller import Controller
    from headrace.types import Seconds

_HEAD = "# HELP "


def own_figures(controller: Controller, *, now: Seconds) -> str:
    """Return the controller's figures as Prometheus text."""
    registry = Registry(table.CONTROLLER_TABLE)
    autoscaler = controller.autoscaler
    states = Counter(row.state for row in replica_rows(controller, None, now=now))
    for state, number in states.items():
        registry.put(table.REPLICAS, state, value=number)
    registry.put(table.REPLICAS_DESIRED, value=max(autoscaler.present, autoscaler.floor))
    registry.put(table.REPLICAS_FLOOR, value=autoscaler.floor)
    registry.put(table.REPLICAS_CEILING, value=autoscaler.ceiling)
    for direction, number in controller.decisions.num_scalings.items():
        registry.put(table.SCALINGS, direction, value=number)
    for name, place in controller.provisioner.places().items():
        registry.put(table.RESTARTS, name, value=place.restarts)
    process = vitals(step_seconds=0.0)
    record_process(
        registry,
        "supervisor",
        resident_bytes=process.resident_bytes,
        open_fds=process.open_fds,
        cpu_seconds=process.cpu_seconds,
    )
    return registry.exposition()


def merged(first: str, second: str) -> str:
    """Return two expositions as one, in which each metric stands once with all its series."""
    families = _families(first)
    for name, lines in _families(second).items():
        if name in families:
            lines = [line for line in lines if not line.startswith("#")]
        families.setdefault(name, []).extend(lines)
    return "".join(line for lines in families.values() for line in lines)


def _families(exposition: str) -> dict[str, list[str]]:
    """Return the lines of each metric, in order."""
    families: dict[str, list[str]] = {}
    name = ""
    for line in exposition.splitlines(keepends=True):
        if line.startswith(_HEAD):
            name = line.removeprefix(_HEAD).partition(" ")[0]
        families.setdefault(name, []).append(line)
    return families
