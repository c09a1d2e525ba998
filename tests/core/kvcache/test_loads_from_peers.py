"""Blocks from a neighbour, seen in an engine's transfers and plans. Against a model:
tests/property/test_tier_states.py."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.core.kvcache.tiers import TierConfig
from headrace.core.kvcache.transfers import Direction, Tier
from headrace.core.scheduler.config import SchedulerConfig
from headrace.machine import Tick
from headrace.testing.engines import (
    GREEDY,
    cached_content,
    simulated_engine,
    simulated_spec,
    undisturbed,
)
from headrace.types import KvSource, ReplicaId, Request, RequestId, TierFigures

if TYPE_CHECKING:
    from headrace.testing.harness import EngineHarness

SPEC = simulated_spec(num_blocks=80, block_size=4, max_model_len=150)
LONG = tuple(range(100, 202))  # 25 full blocks and two tokens
FAST = 1e-5  # a block; to compute one takes 4 x 0.7 ms
NEIGHBOUR = KvSource(ReplicaId("r1"), "r1.kv", 25)


def engine_of(*, block_seconds: float = FAST, tiers: bool = True) -> EngineHarness:
    config = TierConfig(transfer_blocks=8, block_seconds={Tier.PEER: block_seconds})
    engine = simulated_engine(SPEC, SchedulerConfig(), tiers=config if tiers else None)
    neighbour = simulated_engine(SPEC, SchedulerConfig())
    ask(neighbour, "n", source=None)
    engine.store.lent = cached_content(neighbour)
    return engine


def request_of(name: str, source: KvSource | None) -> Request:
    return Request(id=RequestId(name), prompt=LONG, max_tokens=3, sampling=GREEDY, source=source)


def ask(engine: EngineHarness, name: str, source: KvSource | None = NEIGHBOUR) -> int:
    """Run a request to its end; return how many prompt tokens were computed for it."""
    before = len(engine.plans)
    engine.submit(request_of(name, source))
    engine.run_until_idle()
    check(engine, name)
    return sum(plan.num_tokens for plan in engine.plans[before:]) - 2


def check(engine: EngineHarness, name: str) -> None:
    expected = undisturbed(request_of(name, None), SPEC).tokens
    assert tuple(engine.tokens[RequestId(name)]) == expected


def figures(engine: EngineHarness) -> TierFigures:
    return engine.core.scheduler.kv.tiers.figures()


def test_a_prefix_comes_from_the_neighbour_and_counts_as_cached():
    """LMCache/LMCache#1547: blocks were transferred, and computed all the same."""
    engine = engine_of()
    assert ask(engine, "a") == 2
    assert [len(transfer.blocks) for transfer in engine.store.begun] == [8, 8, 8, 1]
    assert {transfer.source for transfer in engine.store.begun} == {"r1.kv"}
    assert engine.outputs[RequestId("a")][0].cached_tokens == 100
    assert figures(engine).peer_tokens_total == 100
    assert figures(engine).loaded_tokens_total == 0
    assert figures(engine).peer_seconds_total > 0
    assert engine.reports[-1].tiers == figures(engine)


def test_what_is_here_already_is_not_fetched():
    engine = engine_of()
    ask(engine, "a")
    ask(engine, "b")
    assert figures(engine).peer_tokens_total == 100


def test_nothing_is_saved_to_a_neighbour():
    engine = engine_of()
    ask(engine, "a")
    engine.feed(Tick())
    assert {transfer.direction for transfer in engine.store.begun} == {Direction.LOAD}


def test_without_transfers_a_source_is_ignored():
    engine = engine_of(tiers=False)
    assert ask(engine, "a") == len(LONG)
    assert engine.store.begun == []


def test_a_neighbour_that_is_slower_than_computing_is_not_asked():
    engine = engine_of(block_seconds=0.01)
    assert ask(engine, "a") == len(LONG)
    assert engine.store.begun == []
    assert figures(engine).declined_tokens_total >= 96


def test_no_more_is_asked_for_than_is_believed_to_be_there():
    engine = engine_of()
    assert ask(engine, "a", NEIGHBOUR._replace(num_blocks=5)) == len(LONG) - 20


def test_a_neighbour_that_lost_the_prefix_is_asked_once_and_the_rest_is_computed():
    engine = engine_of()
    engine.store.lent.clear()
    assert ask(engine, "a") == len(LONG)
    assert len(engine.store.begun) == 1
    assert figures(engine).peer_missed_total == 32


def test_a_neighbour_that_hangs_is_waited_for_no_longer_than_a_bound():
    """vllm-project/vllm#14193: receivers waited 300 s for blocks; llm-d/llm-d#2433: clients see a
    hang where a transfer fails."""
    engine = engine_of()
    engine.submit(request_of("a", NEIGHBOUR))
    assert len(engine.store.pending) == 1
    assert engine.plans == []
    while not engine.plans:
        wakeup = engine.core.next_wakeup()
        assert wakeup is not None
        assert wakeup < 1.5
        engine.now = wakeup
        engine.feed(Tick())
    while engine.num_in_flight:
        engine.finish_step()
    check(engine, "a")
    engine.run_until_idle()
    counts = engine.core.scheduler.kv.counts()
    assert counts.free == counts.total


def test_a_request_that_is_aborted_while_it_waits_leaves_no_block_behind():
    """vllm-project/vllm#46283: blocks of an aborted load were never free again.

    sgl-project/sglang#24527: they were free too early, and another request got what came late.
    """
    engine = engine_of()
    engine.submit(request_of("a", NEIGHBOUR))
    engine.abort(RequestId("a"))
    counts = engine.core.scheduler.kv.counts()
    assert counts.total - counts.free == 8  # until the transfer has ended
    engine.run_until_idle()
    counts = engine.core.scheduler.kv.counts()
    assert counts.free == counts.total
    assert ask(engine, "b") <= len(LONG) - 32  # what came is of use to others


def test_who_asks_for_a_first_token_in_time_is_not_refused_for_what_is_fetched():
    for block_seconds, is_refused in ((FAST, False), (0.01, True)):
        engine = engine_of(block_seconds=block_seconds)
        for number in range(10):  # so that its step times are believed
            engine.submit(Request(id=RequestId(f"w{number}"), prompt=(number,), max_tokens=2))
            engine.run_until_idle()
        predicted = engine.core.scheduler.pace.model.recompute_seconds(len(LONG), 0)
        by = engine.now + predicted / 2
        engine.submit(replace(request_of("a", NEIGHBOUR), first_token_by=by))
        assert (RequestId("a") in engine.rejects) is is_refused


def test_others_are_computed_while_blocks_come():
    engine = engine_of()
    engine.submit(request_of("a", NEIGHBOUR))
    engine.submit(Request(id=RequestId("short"), prompt=(7, 8, 9), max_tokens=3, sampling=GREEDY))
    engine.finish_step()
    assert engine.tokens[RequestId("short")]
    assert RequestId("a") not in engine.tokens


def test_another_tenant_does_not_hit_what_a_neighbour_holds_for_one():
    engine = engine_of()
    salted = Request(
        id=RequestId("a"),
        prompt=LONG,
        max_tokens=3,
        sampling=GREEDY,
        source=NEIGHBOUR,
        chain_root=b"another tenant's".ljust(32),
    )
    engine.submit(salted)
    engine.run_until_idle()
    assert figures(engine).peer_tokens_total == 0
    assert engine.outputs[salted.id][0].cached_tokens == 0
