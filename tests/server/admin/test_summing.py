"""Figures of several gateways as one exposition, in which counters never go back."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.monitoring import table
from headrace.monitoring.engine_figures import EngineFigures
from headrace.monitoring.metrics import Kind, Registry
from headrace.server.admin.summing import Totals, is_everywhere
from headrace.types import ReplicaId, ReportLoad

REPORT = ReportLoad(
    step=3,
    running=1,
    waiting=0,
    waiting_tokens=0,
    kv_blocks_total=4,
    kv_blocks_free=1,
    kv_blocks_cached=0,
    prompt_tokens_total=0,
    cached_tokens_total=0,
    output_tokens_total=0,
    discarded_tokens_total=0,
    preemptions_total=0,
    step_seconds_total=1.5,
)


def tell_of_engine(registry: Registry) -> None:
    figures = EngineFigures(registry)
    figures.ready(ReplicaId("r0"))
    figures.load(ReplicaId("r0"), REPORT)


class Gateway:
    """Counts, and tells."""

    def __init__(self, name: str, totals: Totals) -> None:
        self.registry = Registry(table.GATEWAY_TABLE)
        self.name, self.totals = name, totals
        self.registry.put(table.BUILD, "1", "m", value=1)

    def tell(self) -> None:
        self.totals.take(self.name, self.registry.exposition())


def value(totals: Totals, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(totals.exposition()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    raise KeyError(name)


def pair() -> tuple[Totals, Gateway, Gateway]:
    totals = Totals()
    return totals, Gateway("g0", totals), Gateway("g1", totals)


def test_counters_histograms_and_gauges_are_sums():
    totals, first, second = pair()
    for gateway, number in ((first, 2), (second, 3)):
        gateway.registry.add(table.HTTP_REQUESTS, "/x", "200", amount=number)
        gateway.registry.put(table.CONNECTIONS, value=number)
        gateway.registry.observe(table.TIME_TO_FIRST_TOKEN, value=0.02 * number, times=number)
        gateway.tell()
    assert value(totals, "headrace_http_requests_total", route="/x", status="200") == 5
    assert value(totals, "headrace_connections") == 5
    name = "headrace_time_to_first_token_seconds"
    assert value(totals, f"{name}_count") == 5
    assert value(totals, f"{name}_sum") == pytest.approx(0.26)
    assert value(totals, f"{name}_bucket", le="0.04") == 2
    assert value(totals, f"{name}_bucket", le="0.06") == 5
    assert value(totals, "headrace_build", version="1", model="m") == 1


def test_what_engines_report_to_every_gateway_counts_once():
    totals, first, second = pair()
    for gateway in (first, second):
        tell_of_engine(gateway.registry)
        gateway.tell()
    assert value(totals, "headrace_engine_steps_total", replica="r0") == 3
    assert value(totals, "headrace_kv_blocks", replica="r0", state="used") == 3


def test_everything_that_engines_report_is_known_as_such():
    told = Registry(table.GATEWAY_TABLE)
    empty = told.exposition().splitlines()
    tell_of_engine(told)
    names = {line.partition("{")[0] for line in told.exposition().splitlines() if line not in empty}
    assert len(names) > 20
    metrics = {metric.name: metric for metric in table.GATEWAY_TABLE}
    assert [name for name in names if not is_everywhere(metrics[name])] == []


def test_only_gauges_that_add_up_are_added_up():
    """Whoever declares another gauge decides here, or in summing.py."""
    gauges = [metric for metric in table.GATEWAY_TABLE if metric.kind is Kind.GAUGE]
    assert {metric.name for metric in gauges if not is_everywhere(metric)} == {
        "headrace_connections",
        "headrace_generations_running",
        "headrace_router_waiting",
        "headrace_router_waiting_tokens",
    }


def test_a_gateway_that_ends_stays_in_the_sums_and_its_successor_counts_beside_it():
    totals, first, second = pair()
    for gateway in (first, second):
        gateway.registry.add(table.MIGRATIONS, "r0", amount=4)
        gateway.registry.put(table.CONNECTIONS, value=2)
        gateway.tell()
    totals.forget_gauges("g0")
    assert value(totals, "headrace_connections") == 2
    assert value(totals, "headrace_migrations_total", replica="r0") == 8
    totals.retire("g0")
    successor = Gateway("g0", totals)
    successor.registry.add(table.MIGRATIONS, "r0")
    successor.tell()
    assert value(totals, "headrace_migrations_total", replica="r0") == 9
    assert value(totals, "headrace_connections") == 2
