"""From load reports of engines to the gateway's registry, and figures of this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.monitoring import table

if TYPE_CHECKING:
    from headrace.monitoring.metrics import Registry
    from headrace.types import ReplicaId, ReportLoad

_PROCESS = Path("/proc/self")

_GAUGES = (
    table.ENGINE_RUNNING,
    table.ENGINE_WAITING,
    table.ENGINE_WAITING_TOKENS,
    table.KV_BLOCKS,
)


def record_load(registry: Registry, replica: ReplicaId, report: ReportLoad) -> None:
    """Write one report. Counters of an engine that was restarted start again at 0."""
    used = report.kv_blocks_total - report.kv_blocks_free
    empty = report.kv_blocks_free - report.kv_blocks_cached
    registry.put(table.KV_BLOCKS, replica, "used", value=used)
    registry.put(table.KV_BLOCKS, replica, "cached", value=report.kv_blocks_cached)
    registry.put(table.KV_BLOCKS, replica, "empty", value=empty)
    for metric, value in (
        (table.ENGINE_RUNNING, report.running),
        (table.ENGINE_WAITING, report.waiting),
        (table.ENGINE_WAITING_TOKENS, report.waiting_tokens),
        (table.ENGINE_STEPS, report.step),
        (table.ENGINE_STEP_SECONDS, report.step_seconds_total),
        (table.ENGINE_PROMPT_TOKENS, report.prompt_tokens_total),
        (table.ENGINE_CACHED_TOKENS, report.cached_tokens_total),
        (table.ENGINE_OUTPUT_TOKENS, report.output_tokens_total),
        (table.ENGINE_DISCARDED_TOKENS, report.discarded_tokens_total),
        (table.ENGINE_PREEMPTIONS, report.preemptions_total),
    ):
        registry.put(metric, replica, value=value)


def forget_replica(registry: Registry, replica: ReplicaId) -> None:
    """Drop what was true only while the replica lived; its counters stay."""
    for metric in _GAUGES:
        registry.drop(metric, replica)


def record_process(registry: Registry) -> None:
    """Write this process's memory and file descriptors, where the system tells them."""
    try:
        status = (_PROCESS / "status").read_text()
        descriptors = sum(1 for _ in (_PROCESS / "fd").iterdir())
    except OSError:
        return
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            registry.put(table.PROCESS_RESIDENT, value=int(value.split()[0]) * 1024)
    registry.put(table.PROCESS_OPEN_FDS, value=descriptors)
