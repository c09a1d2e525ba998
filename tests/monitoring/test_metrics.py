"""Metrics: what is counted is what a scraper reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from headrace.monitoring import table
from headrace.monitoring.engine_figures import EngineFigures, record_process
from headrace.monitoring.metrics import MAX_SERIES, OTHER, Kind, Metric, Registry
from headrace.monitoring.reference import reference
from headrace.types import ReplicaId, ReportLoad

COUNTER = Metric(name="c_total", kind=Kind.COUNTER, help='say "hi" \\ and\nmore', labels=("a", "b"))
GAUGE = Metric(name="g", kind=Kind.GAUGE, help="a gauge")
HISTOGRAM = Metric(
    name="h_seconds", kind=Kind.HISTOGRAM, help="times", labels=("a",), buckets=(0.1, 1, 5)
)
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def scrape(registry: Registry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus's own parser makes of it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(registry.exposition())
        for sample in family.samples
    }


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5), st.floats(0, 1e9)), max_size=20)
)
def test_counters_are_read_back_as_they_were_counted(events: list[tuple[str, str, float]]):
    registry = Registry([COUNTER])
    expected: dict[tuple[str, str], float] = {}
    for a, b, amount in events:
        registry.add(COUNTER, a, b, amount=amount)
        expected[a, b] = expected.get((a, b), 0) + amount
    found = scrape(registry)
    assert found == {("c_total", (("a", a), ("b", b))): value for (a, b), value in expected.items()}


@given(st.lists(st.floats(0, 10), max_size=30))
def test_histograms_are_cumulative_and_bounds_are_included(values: list[float]):
    registry = Registry([HISTOGRAM])
    for value in values:
        registry.observe(HISTOGRAM, "x", value=value)
    found = scrape(registry)
    if not values:
        assert found == {}
        return
    for text, bound in (("0.1", 0.1), ("1", 1), ("5", 5), ("+Inf", float("inf"))):
        count = sum(value <= bound for value in values)
        assert found["h_seconds_bucket", (("a", "x"), ("le", text))] == count
    assert found["h_seconds_count", (("a", "x"),)] == len(values)
    assert found["h_seconds_sum", (("a", "x"),)] == pytest.approx(sum(values))


def test_an_observation_may_count_several_times():
    registry = Registry([HISTOGRAM])
    registry.observe(HISTOGRAM, "x", value=0.5, times=3)
    assert registry.value(HISTOGRAM, "x") == 3
    assert scrape(registry)["h_seconds_sum", (("a", "x"),)] == 1.5


def test_gauges_go_up_and_down_counters_only_up():
    registry = Registry([GAUGE, COUNTER])
    registry.add(GAUGE)
    registry.add(GAUGE, amount=-3)
    assert registry.value(GAUGE) == -2
    registry.put(GAUGE, value=7)
    assert registry.value(GAUGE) == 7
    with pytest.raises(AssertionError):
        registry.add(COUNTER, "a", "b", amount=-1)


def test_labels_cannot_grow_without_bound():
    registry = Registry([COUNTER, HISTOGRAM])
    for i in range(2 * MAX_SERIES):
        registry.add(COUNTER, str(i), "x")
        registry.observe(HISTOGRAM, str(i), value=1)
    assert registry.value(COUNTER, OTHER, OTHER) == MAX_SERIES
    assert registry.value(HISTOGRAM, OTHER) == MAX_SERIES
    assert len(scrape(registry)) <= (MAX_SERIES + 1) * 7


def test_metrics_without_labels_are_there_from_the_start():
    assert scrape(Registry([GAUGE])) == {("g", ()): 0}


REPORT = ReportLoad(
    step=10,
    running=2,
    waiting=3,
    waiting_tokens=40,
    kv_blocks_total=100,
    kv_blocks_free=60,
    kv_blocks_cached=25,
    prompt_tokens_total=500,
    cached_tokens_total=60,
    output_tokens_total=70,
    discarded_tokens_total=1,
    preemptions_total=2,
    step_seconds_total=1.25,
)


def test_a_load_report_becomes_figures_and_blocks_add_up():
    registry = Registry(table.GATEWAY_TABLE)
    engines = EngineFigures(registry)
    engines.ready(ReplicaId("r0"))
    engines.load(ReplicaId("r0"), REPORT)
    states = {s: registry.value(table.KV_BLOCKS, "r0", s) for s in ("used", "cached", "empty")}
    assert states == {"used": 40, "cached": 25, "empty": 35}
    assert registry.value(table.ENGINE_STEP_SECONDS, "r0") == 1.25
    assert registry.value(table.ENGINE_WAITING_TOKENS, "r0") == 40


def test_a_lost_replica_keeps_its_counters_and_loses_its_gauges():
    registry = Registry(table.GATEWAY_TABLE)
    engines = EngineFigures(registry)
    for replica in (ReplicaId("r0"), ReplicaId("r1")):
        engines.ready(replica)
        engines.load(replica, REPORT)
        engines.process(replica, resident_bytes=1 << 20, open_fds=7, cpu_seconds=1.5)
    engines.lost(ReplicaId("r0"))
    text = registry.exposition()
    assert 'headrace_kv_blocks{replica="r0"' not in text
    assert 'headrace_kv_blocks{replica="r1",state="used"} 40' in text
    assert 'headrace_engine_output_tokens_total{replica="r0"} 70' in text
    assert 'headrace_replica_ready{replica="r0"} 0' in text
    assert 'headrace_process_open_fds{process="r0"}' not in text
    assert 'headrace_process_cpu_seconds_total{process="r0"} 1.5' in text
    assert engines.resident_bytes(ReplicaId("r0")) == 0
    assert engines.resident_bytes(ReplicaId("r1")) == 1 << 20


def test_figures_of_a_process_are_told_apart_by_its_name():
    registry = Registry(table.GATEWAY_TABLE)
    for process, size in (("g0", 1), ("r0", 2)):
        record_process(registry, process, resident_bytes=size, open_fds=3, cpu_seconds=0.5)
    assert registry.value(table.PROCESS_RESIDENT, "g0") == 1
    assert registry.value(table.PROCESS_RESIDENT, "r0") == 2


def test_names_follow_the_conventions():
    names = [metric.name for metric in table.GATEWAY_TABLE]
    assert len(set(names)) == len(names)
    for metric in table.GATEWAY_TABLE:
        assert re.fullmatch(r"headrace_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.help.endswith(".")


def test_every_metric_of_the_module_is_in_the_table():
    declared = {value.name for value in vars(table).values() if isinstance(value, Metric)}
    assert declared == {metric.name for metric in (*table.GATEWAY_TABLE, *table.CONTROLLER_TABLE)}


def test_the_page_of_metrics_is_current():
    assert DOCS.read_text() == reference(), (
        "run: python -m headrace.monitoring.reference > docs/metrics.md"
    )
