"""What the twin's benchmarks of one engine add up, and how they judge."""

from __future__ import annotations

import fairness
import isolation
import msgspec
import one_engine
import preemption
import pytest
from one_engine import OneEngine, Texts

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.plan import Row
from headrace.executor.simulated import StepTime
from headrace.types import BlockId, SequenceId

STEP_TIME = StepTime(base=0.01, per_prefill=0.001, per_decode=0.002, per_context=0.0)


def engine(kv_tokens: int = 4096) -> OneEngine:
    return OneEngine(SchedulerConfig(), STEP_TIME, kv_tokens=kv_tokens, block=16)


def test_a_lone_request_takes_what_its_steps_take():
    one = engine()
    request = Texts("a", 0).request(100, 3)
    one.run([(1.0, request)], 10.0)
    story = one.stories[request.id]
    assert story.end == "length"
    assert story.ttft == pytest.approx(0.01 + 0.1)
    assert story.gaps == pytest.approx([0.012, 0.012])
    assert story.is_good(0.2, 0.02)
    assert not story.is_good(0.1, 0.02)
    assert not story.is_good(0.2, 0.011)


def test_a_steps_seconds_are_shared_out_among_its_rows():
    one = engine()
    texts = Texts("a", 0)
    one.run([(0.0, texts.request(64, 8)), (0.0, texts.request(32, 8))], 10.0)
    assert sum(each.seconds for each in one.services) == pytest.approx(sum(one.steps))
    assert sum(each.prefill for each in one.services) == 96
    assert sum(each.again for each in one.services) == 0


def test_what_a_preempted_sequence_computes_again_is_counted():
    one = engine(kv_tokens=512)
    texts = Texts("a", 0)
    one.run([(0.0, texts.request(200, 150)), (0.0, texts.request(200, 150))], 60.0)
    assert all(story.end == "length" for story in one.stories.values())
    again = sum(each.again for each in one.services)
    computed = sum(each.prefill + each.decodes for each in one.services)
    assert one.num_restarts >= 1
    assert 0 < again <= one.dropped_tokens
    assert computed - again == 2 * (200 + 150 - 1)


def test_drafts_are_neither_prompt_nor_output():
    def row(*tokens: int, num_drafts: int = 0) -> Row:
        return Row(SequenceId(0), 8, tokens, (BlockId(0),), True, num_drafts)

    assert one_engine.tokens_of(row(5, 6, 7)) == (3, 0)
    assert one_engine.tokens_of(row(5)) == (0, 1)
    assert one_engine.tokens_of(row(5, 6, 7, num_drafts=2)) == (0, 1)


def test_the_server_config_takes_settings_by_name():
    config = one_engine.server_config(["order=arrival", "fair=false", "itl_ms=50"])
    assert (config.order, config.fair, config.itl) == (Order.ARRIVAL, False, 0.05)
    with pytest.raises(msgspec.ValidationError):
        one_engine.server_config(["no_such=1"])


def test_refused_requests_do_not_shift_whose_rows_are_whose():
    one = engine()
    texts = Texts("a", 0)
    first, too_long, last = texts.request(32, 2), texts.request(9000, 2), texts.request(32, 2)
    one.run([(0.0, first), (0.0, too_long), (0.0, last)], 10.0)
    assert one.stories[too_long.id].end == "context_length_exceeded"
    assert {each.request for each in one.services} == {first.id, last.id}


def test_the_fit_finds_the_step_times_that_made_the_figures():
    shapes = [(1.0, 0.0, 1.0), (1.0, 0.0, 32.0), (1.0, 512.0, 0.0), (1.0, 128.0, 16.0)]
    rows = [(*shape, 0.01 + 0.0002 * shape[1] + 0.001 * shape[2]) for shape in shapes]
    found = one_engine.fit_step_time(rows)
    assert (found.base, found.per_prefill, found.per_decode) == pytest.approx((0.01, 2e-4, 1e-3))


def test_measured_step_times_are_read():
    found = one_engine.read_step_time(one_engine.MEASURED)
    assert 0 < found.per_prefill < found.per_decode < found.base < 0.1


def test_jains_index_is_one_for_equals_and_less_for_others():
    assert one_engine.jain([3.0, 3.0]) == pytest.approx(1.0)
    assert one_engine.jain([1.0, 2.0]) == pytest.approx(0.9)
    assert one_engine.jain([1.0, 0.0]) == pytest.approx(0.5)


def test_the_widest_gap_is_of_sums_and_not_of_windows():
    assert fairness.widest_gap([[1.0, 3.0, 1.0], [3.0, 1.0, 3.0]]) == pytest.approx(2.0)
    assert fairness.widest_gap([[2.0, 2.0], [1.0, 1.0]]) == pytest.approx(2.0)


def test_a_fair_run_must_serve_whoever_asks_for_little():
    scene = fairness.SCENES[-1]

    def run(done: float) -> fairness.Run:
        share = fairness.Share(service_s=1, per_weight_s=1, done_share=done, ttft_p50_s=1)
        return fairness.Run(
            shares={"a": share, "b": share}, tokens_per_s=100, jain=1.0, widest_gap_s=0.0
        )

    assert fairness.judge(scene, run(1.0), run(0.4), 10.0) == []
    assert fairness.judge(scene, run(0.5), run(0.4), 10.0) != []


def test_throughput_is_judged_only_where_requests_are_alike():
    def run(tokens: float) -> fairness.Run:
        return fairness.Run(shares={}, tokens_per_s=tokens, jain=1.0, widest_gap_s=0.0)

    overload, cached = fairness.SCENES[0], fairness.SCENES[2]
    assert fairness.judge(overload, run(90), run(100), 10.0) == ["90 tokens/s, 100 without"]
    assert fairness.judge(cached, run(90), run(100), 10.0) == []


def phase(**changes: float) -> isolation.Phase:
    values = {
        "completed_per_s": 1.0,
        "ttft_p50_ms": 50.0,
        "ttft_p95_ms": 100.0,
        "itl_p99_ms": 50.0,
        "good_share": 1.0,
        "batch_tokens_per_s": 100.0,
        "step_p50_ms": 20.0,
        "step_p95_ms": 40.0,
    }
    return isolation.Phase(name="", requests=1, **(values | changes))


def test_isolation_allows_one_step_two_points_and_a_tenth_of_what_is_left():
    def reached(**changes: float) -> list[bool]:
        return [bar.reached for bar in isolation.judge(phase(), phase(), phase(**changes))]

    assert reached(ttft_p95_ms=140.0, good_share=0.98, batch_tokens_per_s=63.0) == [True] * 3
    assert reached(ttft_p95_ms=141.0, good_share=0.97, batch_tokens_per_s=62.0) == [False] * 3


def test_the_recompute_tax_is_held_against_full_recomputation():
    def tax(policy: str, share: float, full: float) -> preemption.Tax:
        return preemption.Tax(
            policy=policy,
            over=2.0,
            computed_tokens=1,
            again_tokens=1,
            share=share,
            preemptions=1,
            full_share=full,
            completed=1,
            seconds=1.0,
            ttft_p95_s=1.0,
            worst_gap_p95_s=1.0,
        )

    base = tax(preemption.BASELINE, 0.01, 0.04)
    assert preemption.judge([base, tax(preemption.OURS, 0.02, 0.5)]) == []
    assert len(preemption.judge([base, tax(preemption.OURS, 0.021, 0.5)])) == 1
    assert preemption.full_share(90, 10) == pytest.approx(0.1)
