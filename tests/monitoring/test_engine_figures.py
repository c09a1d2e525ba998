"""What engines report, as a scrape shows it."""

from __future__ import annotations

from headrace.core.scheduler.events import ReportLoad
from headrace.monitoring import table
from headrace.monitoring.engine_figures import EngineFigures
from headrace.monitoring.metrics import Registry
from headrace.types import ReplicaId

R0 = ReplicaId("r0")
REPORT = ReportLoad(
    step=1,
    running=2,
    waiting=3,
    waiting_tokens=4,
    kv_blocks_total=10,
    kv_blocks_free=5,
    kv_blocks_cached=1,
    prompt_tokens_total=6,
    cached_tokens_total=7,
    output_tokens_total=8,
    discarded_tokens_total=9,
    preemptions_total=0,
    step_seconds_total=1.5,
)


def test_what_a_replica_still_says_when_it_is_gone_is_dropped():
    registry = Registry(table.GATEWAY_TABLE)
    figures = EngineFigures(registry)
    figures.ready(R0)
    figures.load(R0, REPORT)
    figures.process(R0, resident_bytes=7, open_fds=1, cpu_seconds=1.0)
    assert 'headrace_kv_blocks{replica="r0",state="used"} 5' in registry.exposition()
    figures.gone(R0)
    figures.load(R0, REPORT)
    figures.process(R0, resident_bytes=7, open_fds=1, cpu_seconds=1.0)
    text = registry.exposition()
    assert "headrace_kv_blocks{" not in text
    assert "headrace_engine_running{" not in text
    assert figures.resident_bytes(R0) == 0
    figures.ready(R0)
    figures.load(R0, REPORT)
    assert registry.value(table.KV_BLOCKS, R0, "used") == 5
