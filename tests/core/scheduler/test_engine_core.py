"""EngineCore: refusals, ends, failures, deadlines, reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.core.kvcache.chain import prompt_chain
from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.events import (
    Abort,
    Emit,
    Execute,
    KvChanged,
    KvSnapshot,
    Output,
    ReportLoad,
    SnapshotWanted,
    StepDone,
    Submit,
)
from headrace.core.scheduler.plan import StepResult
from headrace.core.scheduler.preemption import Preemption
from headrace.errors import ConfigError, InvariantBroken
from headrace.machine import Tick
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec, undisturbed
from headrace.types import (
    EngineTiming,
    FinishReason,
    Request,
    RequestId,
    StepId,
    TokenLogprobs,
    block_key,
)

ID = RequestId("r")


def request_of(*prompt: int, max_tokens: int = 4) -> Request:
    return Request(id=ID, prompt=prompt, max_tokens=max_tokens, sampling=GREEDY)


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (request_of(), "invalid_request", "no tokens"),
        (request_of(*range(20)), "context_length_exceeded", "20 tokens; the model's context is 20"),
        (request_of(1, max_tokens=0), "invalid_request", "max_tokens is 0"),
        (request_of(1, 1000), "invalid_request", "0 to 999"),
        (request_of(-1, 1), "invalid_request", "0 to 999"),
        (replace(request_of(1), num_prior=1), "invalid_request", "num_prior is 1"),
    ],
)
def test_what_can_never_be_served_is_refused_at_the_door(request_: Request, code: str, words: str):
    engine = simulated_engine(simulated_spec(max_model_len=20))
    engine.submit(request_)
    assert engine.rejects[ID].code == code
    assert words in engine.rejects[ID].reason
    assert not engine.plans


def test_a_prompt_that_the_cache_cannot_hold_is_refused():
    engine = simulated_engine(simulated_spec(num_blocks=2))
    engine.submit(request_of(*range(8)))
    assert engine.rejects[ID].code == "context_length_exceeded"
    assert "the KV cache holds 8" in engine.rejects[ID].reason


def test_the_queue_is_bounded():
    engine = simulated_engine(config=SchedulerConfig(max_num_seqs=1, max_num_waiting=2))
    for i in range(4):
        engine.submit(replace(request_of(1), id=RequestId(f"r{i}")))
    assert engine.rejects[RequestId("r3")].code == "overloaded"
    engine.run_until_idle()
    assert len(engine.finishes) == 3


def test_the_next_step_is_told_before_the_tokens_of_the_last():
    engine = simulated_engine()
    engine.submit(request_of(1))
    result = StepResult(tokens=[5], seconds=0.1)
    effects = engine.core.handle(StepDone(StepId(0), result), 0.1)
    assert [type(effect) for effect in effects] == [Execute, Emit]


def test_a_stop_token_counts_only_after_min_tokens_and_is_emitted():
    spec = simulated_spec()
    first = undisturbed(request_of(1), spec).tokens
    request = replace(request_of(1), stop_token_ids=(first[0],), min_tokens=1, max_tokens=50)
    engine = simulated_engine(spec)
    engine.submit(request)
    engine.run_until_idle()
    expected = undisturbed(request, spec)
    assert tuple(engine.tokens[ID]) == expected.tokens
    assert engine.finishes[ID] is expected.finish


def test_tokens_of_an_earlier_attempt_count_as_output():
    engine = simulated_engine()
    engine.submit(replace(request_of(1, 2, 3, 4), num_prior=2))
    start = engine.plans[0].starts[0]
    assert (start.prompt, start.output) == ((1, 2), (3, 4))


def test_aborting_a_stranger_is_harmless():
    engine = simulated_engine()
    assert engine.feed(Abort(RequestId("nobody"))) == []


def test_a_failed_step_ends_the_requests_in_it_and_no_others():
    engine = simulated_engine(config=SchedulerConfig(max_num_seqs=1))
    engine.submit(replace(request_of(1), id=RequestId("in it")))
    engine.submit(replace(request_of(2), id=RequestId("waits")))
    engine.finish_step(failed="out of memory")
    assert engine.outputs[RequestId("in it")][-1].reason == "out of memory"
    engine.run_until_idle()
    assert engine.finishes == {
        RequestId("in it"): FinishReason.ERROR,
        RequestId("waits"): FinishReason.LENGTH,
    }


def test_what_a_failed_step_wrote_is_never_shared():
    engine = simulated_engine()
    engine.submit(request_of(*range(12)))
    engine.finish_step(failed="out of memory")
    engine.submit(replace(request_of(*range(12)), id=RequestId("again")))
    engine.run_until_idle()
    assert engine.outputs[RequestId("again")][0].cached_tokens == 0


def test_ends_that_a_failed_step_may_not_have_seen_are_told_again():
    engine = simulated_engine()
    engine.submit(request_of(1, max_tokens=1))
    engine.finish_step()
    engine.submit(replace(request_of(2), id=RequestId("fails")))
    assert engine.plans[-1].ends == (0,)
    engine.finish_step(failed="x")
    engine.submit(replace(request_of(3), id=RequestId("next")))
    assert engine.plans[-1].ends == (0, 1)


def test_a_row_that_could_not_be_sampled_ends_its_request_alone():
    engine = simulated_engine()
    core = engine.core
    core.handle(Submit(replace(request_of(1), id=RequestId("bad"))), 0.0)
    core.handle(Submit(replace(request_of(2), id=RequestId("good"))), 0.0)
    core.handle(StepDone(StepId(0), StepResult(tokens=[3], seconds=0.1)), 0.1)
    result = StepResult(tokens=[None, 7], seconds=0.1, failures=((0, "all logits are NaN"),))
    effects = core.handle(StepDone(StepId(1), result), 0.2)
    (emit,) = [effect for effect in effects if isinstance(effect, Emit)]
    assert emit.outputs == (
        Output(RequestId("bad"), (), FinishReason.ERROR, 0, reason="all logits are NaN"),
        Output(RequestId("good"), (7,), None, 0, timing=EngineTiming(0.1, 0.1, 1)),
    )
    core.check_integrity()


def test_log_probabilities_travel_with_their_token():
    engine = simulated_engine()
    engine.core.handle(Submit(request_of(1)), 0.0)
    told = TokenLogprobs(5, -0.5, ((5, -0.5), (6, -1.5)))
    result = StepResult(tokens=[5], seconds=0.1, logprobs=((0, told),))
    effects = engine.core.handle(StepDone(StepId(0), result), 0.1)
    timing = EngineTiming(0.0, 0.1, 1)
    assert Emit((Output(ID, (5,), None, 0, (told,), timing=timing),)) in effects


def test_a_step_out_of_order_kills_the_machine():
    engine = simulated_engine()
    engine.submit(request_of(1))
    with pytest.raises(InvariantBroken, match=r"step 3 ended; in flight are \[0\]"):
        engine.feed(StepDone(StepId(3), StepResult(tokens=[1], seconds=0.1)))


def test_a_deadline_ends_a_request_whether_it_runs_or_waits():
    engine = simulated_engine(config=SchedulerConfig(max_num_seqs=1))
    for name, deadline in (("runs", 0.3), ("waits", 0.2)):
        request = replace(request_of(1, max_tokens=100), id=RequestId(name), deadline=deadline)
        engine.submit(request)
    assert engine.core.next_wakeup() == 0.2
    engine.now = 0.25
    engine.feed(Tick())
    assert engine.finishes == {RequestId("waits"): FinishReason.DEADLINE}
    assert engine.core.next_wakeup() == 0.3
    engine.now = 0.3
    engine.feed(Tick())
    assert engine.finishes[RequestId("runs")] is FinishReason.DEADLINE


def test_a_deadline_that_has_passed_ends_the_request_at_once():
    engine = simulated_engine()
    engine.now = 5.0
    engine.submit(replace(request_of(1), deadline=4.0))
    assert engine.finishes == {ID: FinishReason.DEADLINE}
    assert not engine.plans
    assert engine.core.next_wakeup() is None


def test_tokens_that_come_with_the_deadline_are_not_lost():
    engine = simulated_engine()
    engine.submit(replace(request_of(1), deadline=0.001))
    engine.finish_step()  # takes longer
    assert len(engine.tokens[ID]) == 1
    assert engine.finishes[ID] is FinishReason.DEADLINE


def test_deadlines_of_the_ended_do_not_pile_up():
    engine = simulated_engine()
    for i in range(500):
        request = replace(request_of(1, max_tokens=1), id=RequestId(f"r{i}"), deadline=1e6 + i)
        engine.submit(request)
        engine.finish_step()
    assert len(engine.core._deadlines) < 100
    assert engine.core.next_wakeup() is None or engine.core.next_wakeup() >= 1e6


def test_load_is_reported_periodically_while_there_is_work_and_once_when_idle():
    engine = simulated_engine(config=SchedulerConfig(report_period=0.5))
    assert engine.core.next_wakeup() is None
    engine.submit(request_of(*range(10), max_tokens=3))
    assert engine.core.next_wakeup() == 0.5
    engine.now = 0.6
    (report,) = engine.feed(Tick())
    assert isinstance(report, ReportLoad)
    assert (report.running, report.waiting, report.kv_blocks_free) == (1, 0, 61)
    assert engine.core.next_wakeup() == 1.1
    assert engine.feed(Tick()) == []
    engine.run_until_idle()
    assert len(engine.reports) == 2
    assert engine.core.next_wakeup() is None
    last = engine.reports[-1]
    assert (last.running, last.kv_blocks_free, last.kv_blocks_cached) == (0, 64, 3)
    assert (last.prompt_tokens_total, last.output_tokens_total, last.step) == (10, 3, 3)
    assert last.step_seconds_total > 0


def test_a_full_queue_is_seen_in_the_report():
    engine = simulated_engine(config=SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=4))
    for i in range(3):
        engine.submit(replace(request_of(*range(i * 20, i * 20 + 10)), id=RequestId(f"r{i}")))
    engine.now = 0.6
    engine.feed(Tick())
    report = engine.reports[-1]
    assert (report.running, report.waiting, report.waiting_tokens) == (1, 2, 6 + 20)


def test_the_first_token_says_how_long_its_request_waited_and_computed():
    engine = simulated_engine(config=SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=4))
    engine.submit(request_of(*range(10), max_tokens=2))
    engine.now = 0.5
    late = RequestId("late")
    engine.submit(replace(request_of(20, 21), id=late))
    times = []
    while late not in engine.tokens:
        engine.finish_step()
        times.append(engine.now)
    first, second = engine.outputs[ID]
    assert first.timing == EngineTiming(0.0, times[2], 3)
    assert second.timing is None
    assert engine.outputs[late][0].timing == EngineTiming(times[3] - 0.5, times[4] - times[3], 1)


def test_a_request_that_is_put_back_before_its_first_token_says_so():
    engine = simulated_engine(
        simulated_spec(num_blocks=6),
        SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=2, preemption=Preemption.LAST_IN),
    )
    engine.submit(request_of(*range(4), max_tokens=20))
    engine.finish_step()
    engine.submit(replace(request_of(*range(50, 62), max_tokens=2), id=RequestId("new")))
    engine.run_until_idle()
    timing = engine.outputs[RequestId("new")][0].timing
    assert timing is not None
    assert timing.preemptions == engine.reports[-1].preemptions_total == 1
    assert timing.chunks > 12  # of one token beside a decode, some of them twice


def test_tokens_that_steps_compute_are_counted_and_those_of_failed_steps_are_not():
    engine = simulated_engine(config=SchedulerConfig(max_num_batched_tokens=4, max_num_seqs=2))
    for name, total in (("computed", 10), ("cached", 12)):
        engine.submit(replace(request_of(*range(10), max_tokens=1), id=RequestId(name)))
        engine.run_until_idle()
        assert engine.reports[-1].computed_tokens_total == total
    engine.submit(replace(request_of(*range(50, 53)), id=RequestId("fails")))
    engine.finish_step(failed="x")
    assert engine.reports[-1].computed_tokens_total == 12


def test_changes_of_the_prefix_cache_are_told_in_the_event_that_made_them():
    engine = simulated_engine(simulated_spec(num_blocks=4))
    root = b"tenant"
    first = prompt_chain(root, range(12), 4)
    engine.submit(replace(request_of(*range(12), max_tokens=1), chain=first, chain_root=root))
    assert not engine.follower.number  # computed is not planned
    engine.finish_step()
    (told,) = [effect for effect in engine.journal.effects if isinstance(effect, KvChanged)]
    assert told == KvChanged(1, tuple(map(block_key, first)), ())
    engine.submit(replace(request_of(*range(50, 62), max_tokens=1), id=RequestId("other")))
    changes = [effect for effect in engine.journal.effects if isinstance(effect, KvChanged)]
    assert changes[1:] == [KvChanged(2, (), (block_key(first[2]), block_key(first[1])))]


def test_whoever_asks_for_the_prefix_cache_gets_all_of_it():
    engine = simulated_engine()
    assert engine.feed(SnapshotWanted("g0")) == [KvSnapshot("g0", 0, ())]
    engine.submit(request_of(*range(9), max_tokens=1))
    engine.run_until_idle()
    (snapshot,) = engine.feed(SnapshotWanted("g1"))
    assert isinstance(snapshot, KvSnapshot)
    assert (snapshot.to, snapshot.number) == ("g1", 1)
    assert set(snapshot.keys) == engine.follower.keys
    assert len(snapshot.keys) == 2


def test_the_gateways_chain_is_used_and_the_rest_of_it_extended():
    spec = simulated_spec()
    engine = simulated_engine(spec)
    for name, root in (("a", b"tenant 1"), ("b", b"tenant 2"), ("c", b"tenant 1")):
        request = replace(request_of(*range(13)), id=RequestId(name), chain_root=root)
        engine.submit(request)
        engine.run_until_idle()
    assert [o[0].cached_tokens for o in engine.outputs.values()] == [0, 0, 12]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0; it must be 1 to 8192"),
        ({"max_steps_in_flight": 3}, "max_steps_in_flight is 3; it must be 1 to 2"),
        ({"report_period": 0}, "report_period is 0"),
        ({"max_num_seqs": 100, "max_num_batched_tokens": 64}, "at least max_num_seqs"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: dict[str, int], words: str):
    with pytest.raises(ConfigError, match=words):
        SchedulerConfig(**setting)
