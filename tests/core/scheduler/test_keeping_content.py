"""What a request says of its content has its effect in the engine: session, retention, waiting."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from headrace.core.kvcache.eviction.config import EvictionConfig
from headrace.core.scheduler.config import SchedulerConfig
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec
from headrace.types import Request, RequestId

if TYPE_CHECKING:
    from headrace.testing.harness import EngineHarness

SPEC = simulated_spec(num_blocks=16, block_size=4)


def request_of(name: str, first: int, length: int = 17) -> Request:
    prompt = tuple(range(first, first + length))
    return Request(id=RequestId(name), prompt=prompt, max_tokens=1, sampling=GREEDY)


def engine_with(config: EvictionConfig, max_num_seqs: int = 4) -> EngineHarness:
    return simulated_engine(
        SPEC,
        SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=8, eviction=config),
    )


def cached_of(engine: EngineHarness, request: Request) -> int:
    engine.submit(request)
    engine.run_until_idle()
    return engine.outputs[request.id][-1].cached_tokens


@pytest.mark.parametrize(
    ("retention", "share", "cached"),
    [(None, 1.0, 0), (1000.0, 1.0, 16), (1000.0, 0.0, 0), (0.001, 1.0, 0)],
)
def test_retention_keeps_a_prompt_while_it_lasts_and_pins_are_allowed(
    retention: float | None, share: float, cached: int
):
    engine = engine_with(EvictionConfig(pinned_share=share))
    first = replace(request_of("first", 0), retention=retention)
    assert cached_of(engine, first) == 0
    for number in range(1, 7):
        engine.now += 1.0
        cached_of(engine, request_of(f"other{number}", 100 * number))
    report = engine.reports[-1]
    assert report.kv_blocks_pinned == cached // 4
    assert report.kv_evicted_total > 0
    assert cached_of(engine, replace(first, id=RequestId("again"))) == cached
    assert engine.reports[-1].kv_regretted_total == (0 if cached else 4)


@pytest.mark.parametrize(("order", "cached"), [("lru", 0), ("foresight", 16)])
def test_what_a_waiting_request_will_hit_is_kept_for_it(order: str, cached: int):
    engine = engine_with(EvictionConfig(order=order), max_num_seqs=1)
    for number in range(3):
        cached_of(engine, request_of(f"cached{number}", 100 * number))
    engine.submit(request_of("runs", 500, 37))
    engine.submit(request_of("waits", 0))
    engine.run_until_idle()
    assert engine.outputs[RequestId("waits")][-1].cached_tokens == cached


def test_an_aborted_request_is_not_waited_for():
    engine = engine_with(EvictionConfig(), max_num_seqs=1)
    for number in range(3):
        cached_of(engine, request_of(f"cached{number}", 100 * number))
    engine.submit(request_of("runs", 500, 5))
    engine.submit(request_of("waits", 0))
    engine.finish_step()
    engine.abort(RequestId("waits"))
    engine.run_until_idle()
    assert not engine.core.scheduler.kv.evictor._expectations._waiters


@pytest.mark.parametrize(("share", "cached"), [(1.0, 0), (0.4, 16)])
def test_one_tenants_content_does_not_push_out_anothers_beyond_its_quota(share: float, cached: int):
    engine = engine_with(EvictionConfig(order="lru", tenant_share=share))
    small = replace(request_of("small", 0), tenant="small")
    cached_of(engine, small)
    for number in range(1, 9):
        other = request_of(f"large{number}", 100 * number, 9)
        cached_of(engine, replace(other, tenant="large"))
    assert cached_of(engine, replace(small, id=RequestId("again"))) == cached


def test_a_session_is_a_conversation_of_one_tenant():
    engine = engine_with(EvictionConfig())
    visits = engine.core.scheduler.kv.evictor._visits
    for number, tenant in enumerate(("red", "blue", "red")):
        request = replace(request_of(f"r{number}", 100 * number), tenant=tenant, session="s")
        cached_of(engine, request)
    assert dict(visits._turns) == {("blue", "s"): 1, ("red", "s"): 2}
