"""Lower tiers, seen in an engine's transfers and plans. Against a model: tests/property."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.core.kvcache.tiers import TierConfig
from headrace.core.kvcache.transfers import Direction, Tier, TierChanged, TransferDone
from headrace.core.scheduler.config import SchedulerConfig
from headrace.machine import Tick
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec, undisturbed
from headrace.types import FinishReason, Request, RequestId, TierFigures, Tokens

if TYPE_CHECKING:
    from headrace.testing.harness import EngineHarness

SPEC = simulated_spec(num_blocks=40, block_size=4, max_model_len=150)
LONG = tuple(range(100, 202))  # 25 full blocks and two tokens
OTHER = tuple(range(300, 402))
FAST = 1e-5  # a block; to compute one takes 4 x 0.7 ms


def engine_of(
    *, block_seconds: float = FAST, transfer_blocks: int = 8, outlives: bool = False
) -> EngineHarness:
    tiers = TierConfig(
        transfer_blocks=transfer_blocks,
        block_seconds={Tier.HOST: block_seconds},
        outlives=outlives,
    )
    return simulated_engine(SPEC, SchedulerConfig(), tiers=tiers)


def ask(engine: EngineHarness, name: str, prompt: tuple[int, ...]) -> Tokens:
    """Run a request to its end; return how many prompt tokens were computed for it."""
    before = len(engine.plans)
    submit(engine, name, prompt)
    engine.run_until_idle()
    assert engine.finishes[RequestId(name)] is FinishReason.LENGTH
    assert (
        tuple(engine.tokens[RequestId(name)]) == undisturbed(request_of(name, prompt), SPEC).tokens
    )
    return sum(plan.num_tokens for plan in engine.plans[before:]) - 2


def request_of(name: str, prompt: tuple[int, ...]) -> Request:
    return Request(id=RequestId(name), prompt=prompt, max_tokens=3, sampling=GREEDY)


def submit(engine: EngineHarness, name: str, prompt: tuple[int, ...]) -> None:
    engine.submit(request_of(name, prompt))


def figures(engine: EngineHarness) -> TierFigures:
    return engine.core.scheduler.kv.tiers.figures()


def loads(engine: EngineHarness) -> list[int]:
    """How many blocks each load was for."""
    begun = engine.store.begun
    return [len(t.blocks) for t in begun if t.direction is Direction.LOAD]


def pushed_out(engine: EngineHarness) -> None:
    """LONG was computed and its blocks had to go, saved."""
    ask(engine, "long", LONG)
    ask(engine, "other", OTHER)
    ask(engine, "more", tuple(range(500, 602)))


def test_offload_does_not_silently_do_nothing():
    """LMCache#2535, LMCache#2876: counters prove that blocks went down and came back."""
    engine = engine_of()
    pushed_out(engine)
    saved = figures(engine).saved_blocks_total
    assert saved >= 20
    assert figures(engine).host_bytes == len(engine.store.contents) * SPEC.block_bytes > 0
    num_computed = ask(engine, "again", LONG)
    loaded = figures(engine).loaded_tokens_total
    assert loaded >= 80
    assert num_computed <= len(LONG) - loaded
    assert engine.reports[-1].tiers == figures(engine)


def test_without_tiers_nothing_is_moved_and_texts_are_the_same():
    engine, plain = engine_of(), simulated_engine(SPEC, SchedulerConfig())
    for each in (engine, plain):
        pushed_out(each)
        ask(each, "again", LONG)
    assert engine.tokens == plain.tokens
    assert plain.store.begun == []
    assert plain.core.scheduler.kv.tiers.figures() == TierFigures()


def test_a_tier_that_is_slower_than_computing_is_not_used():
    """sglang#26305: a file tier raised the time to the first token."""
    engine = engine_of(block_seconds=0.01)
    pushed_out(engine)
    assert ask(engine, "again", LONG) >= 98
    assert loads(engine) == []
    assert figures(engine).declined_tokens_total >= 80


def test_a_tier_that_turns_out_to_be_slow_is_given_up_and_tried_again_later():
    engine = engine_of()
    engine.store.block_seconds = 0.05
    pushed_out(engine)
    ask(engine, "again", LONG)
    used = len(loads(engine))
    assert used
    for turn in range(200):
        ask(engine, f"other{turn}", OTHER if turn % 2 else LONG)
        if turn == 20:
            assert len(loads(engine)) <= used + 2
    assert len(loads(engine)) > used


def test_a_load_begins_when_the_request_is_queued_and_nobody_computes_meanwhile():
    engine = engine_of()
    pushed_out(engine)
    num_plans = len(engine.plans)
    submit(engine, "again", LONG)
    assert engine.store.pending
    assert len(engine.plans) == num_plans
    engine.feed(Tick())
    assert len(engine.plans) == num_plans
    while loading := [
        i for i, t in enumerate(engine.store.pending) if t.direction is Direction.LOAD
    ]:
        assert len(engine.plans) == num_plans
        engine.finish_transfer(loading[0])
    assert len(engine.plans) == num_plans + 1
    assert engine.plans[-1].num_tokens <= 8


def test_others_are_computed_while_a_load_is_under_way():
    engine = engine_of()
    pushed_out(engine)
    submit(engine, "again", LONG)
    submit(engine, "short", (7, 8, 9))
    engine.finish_step()
    assert engine.tokens[RequestId("short")]
    assert RequestId("again") not in engine.tokens


def test_two_requests_for_one_prefix_fetch_it_once():
    engine = engine_of()
    pushed_out(engine)
    submit(engine, "a", (*LONG, 1))
    submit(engine, "b", (*LONG, 2))
    engine.run_until_idle()
    assert sum(loads(engine)) <= 25
    assert engine.outputs[RequestId("b")][0].cached_tokens >= 96


def test_a_long_run_is_fetched_in_pieces():
    engine = engine_of(transfer_blocks=4)
    pushed_out(engine)
    ask(engine, "again", LONG)
    assert max(loads(engine)) == 4
    assert sum(loads(engine)) >= 20


def test_no_load_is_ever_for_less_than_a_block_and_a_run_is_fetched_once():
    """LMCache#2106: "need to load: -64", for ever."""
    engine = engine_of(transfer_blocks=4)
    pushed_out(engine)
    engine.store.contents.clear()  # everything that is believed to be there has gone
    submit(engine, "again", LONG)
    engine.run_until_idle()
    assert engine.finishes[RequestId("again")] is FinishReason.LENGTH
    assert min(loads(engine)) >= 1
    assert len(loads(engine)) <= 25
    assert figures(engine).loaded_tokens_total == 0


@pytest.mark.parametrize("num_left", [0, 2])
def test_what_was_lost_below_is_computed(num_left: int):
    engine = engine_of()
    pushed_out(engine)
    submit(engine, "again", LONG)
    loading = [transfer.direction for transfer in engine.store.pending].index(Direction.LOAD)
    engine.finish_transfer(loading, limit=num_left)
    engine.run_until_idle()
    assert (
        tuple(engine.tokens[RequestId("again")])
        == undisturbed(request_of("again", LONG), SPEC).tokens
    )


def test_a_load_that_hangs_is_given_up_and_its_late_end_does_no_harm():
    engine = engine_of()
    pushed_out(engine)
    submit(engine, "again", LONG)
    num_plans = len(engine.plans)
    for _ in range(10):  # some are for load reports
        wakeup = engine.core.next_wakeup()
        assert wakeup is not None
        engine.now = wakeup
        engine.feed(Tick())
        if len(engine.plans) > num_plans:
            break
    assert engine.plans[-1].num_tokens == len(LONG)  # it is computed
    assert figures(engine).errors_total == 1
    engine.finish_step()
    engine.finish_transfer()
    engine.run_until_idle()
    assert (
        tuple(engine.tokens[RequestId("again")])
        == undisturbed(request_of("again", LONG), SPEC).tokens
    )
    counts = engine.core.scheduler.kv.counts()
    assert counts.free == counts.total


def test_a_request_that_is_aborted_leaves_the_load_to_the_next_one():
    engine = engine_of()
    pushed_out(engine)
    submit(engine, "a", LONG)
    engine.abort(RequestId("a"))
    engine.run_until_idle()
    assert len(loads(engine)) == 1
    ask(engine, "b", LONG)
    assert sum(loads(engine)) <= 25


def test_an_idle_engine_saves_everything_for_a_tier_that_outlives_it():
    engine = engine_of(outlives=True)
    ask(engine, "long", LONG)
    assert figures(engine).saved_blocks_total == 26
    num_transfers = len(engine.store.begun)
    engine.feed(Tick())
    assert len(engine.store.begun) == num_transfers


def test_an_idle_engine_saves_nothing_for_a_tier_that_ends_with_it():
    engine = engine_of()
    ask(engine, "long", LONG[:40])
    assert figures(engine).saved_blocks_total == 0


def test_a_new_engine_finds_what_an_earlier_one_saved():
    first = engine_of(outlives=True)
    ask(first, "long", LONG)
    second = engine_of(outlives=True)
    second.store.contents.update(first.store.contents)
    second.feed(TierChanged(tier=Tier.HOST, stored=tuple(first.store.contents)))
    assert ask(second, "again", LONG) <= 6


def test_saving_pauses_when_nothing_can_be_stored():
    engine = engine_of(outlives=True)
    submit(engine, "long", LONG)
    while engine.num_in_flight:
        engine.finish_step()
    for _ in range(3):
        while engine.store.pending:
            engine.finish_transfer(limit=0)
        engine.feed(Tick())
    assert len(engine.store.begun) == 1
    engine.now += 31.0
    engine.feed(Tick())
    assert len(engine.store.begun) == 2


def test_saves_hold_no_memory_and_what_was_evicted_meanwhile_is_not_stored():
    engine = engine_of(outlives=True)
    submit(engine, "long", LONG)
    while engine.num_in_flight:
        engine.finish_step()
    (reading,) = engine.store.pending
    assert engine.core.scheduler.kv.num_free == SPEC.num_blocks
    submit(engine, "other", OTHER)
    while engine.num_in_flight:
        engine.finish_step()
    submit(engine, "more", tuple(range(500, 602)))
    engine.run_until_idle()
    assert not set(reading.digests) & engine.store.contents.keys()
    assert engine.store.contents


@pytest.mark.parametrize("number", [0, 99])
def test_the_end_of_no_known_transfer_is_harmless(number: int):
    engine = engine_of()
    engine.feed(TransferDone(number=number, num_done=0))
    ask(engine, "long", LONG)
