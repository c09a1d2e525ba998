"""EngineCore under whatever may happen, against streams that nothing disturbed.

The executor checks every row's blocks, the harness runs ``check_integrity()`` after every event;
here: who ends how, with which tokens, and that nothing is left behind.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.drafts import Speculation
from headrace.core.scheduler.events import Submit
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.preemption import Preemption
from headrace.errors import ContextLengthExceeded, DeadlineInfeasible
from headrace.machine import Tick
from headrace.testing.engines import GREEDY, Stream, simulated_engine, simulated_spec, undisturbed
from headrace.types import FinishReason, PriorityClass, Request, RequestId, SamplingParams

VOCABULARY = 50
PREFIXES = [[p] * 3 + list(range(p, p + 30)) for p in (3, 4)]
ENDED_BY_ITSELF = (FinishReason.STOP, FinishReason.LENGTH)


class EngineStates(RuleBasedStateMachine):
    """Submits, aborts, deadlines, failures; tiny pools preempt; one or two steps in flight."""

    @initialize(
        num_blocks=st.integers(3, 24),
        block_size=st.sampled_from([2, 5, 8]),
        budget=st.sampled_from([4, 9, 64]),
        depth=st.sampled_from([1, 2]),
        max_passes=st.sampled_from([0, 2, 16]),
        share_partial=st.booleans(),
        order=st.sampled_from(Order),
        preemption=st.sampled_from(Preemption),
        itl=st.sampled_from([None, 0.001, 0.02]),
        speculation=st.sampled_from(Speculation),
        max_drafts=st.sampled_from([1, 4, 16]),
        repeats=st.booleans(),
        slice_blocks=st.sampled_from([1, 2, 1024]),
    )
    def build(
        self,
        num_blocks: int,
        block_size: int,
        budget: int,
        depth: int,
        max_passes: int,
        share_partial: bool,
        order: Order,
        preemption: Preemption,
        itl: float | None,
        speculation: Speculation,
        max_drafts: int,
        repeats: bool,
        slice_blocks: int,
    ):
        self.repeats = repeats
        self.spec = simulated_spec(
            num_blocks=num_blocks, block_size=block_size, max_model_len=60, vocab_size=VOCABULARY
        )
        config = SchedulerConfig(
            max_num_seqs=4,
            max_num_batched_tokens=budget,
            max_steps_in_flight=depth,
            max_passes=max_passes,
            share_partial=share_partial,
            order=order,
            preemption=preemption,
            itl=itl,
            batch_itl=itl,
            speculation=speculation,
            max_drafts=max_drafts,
            slice_blocks=slice_blocks,
        )
        self.engine = simulated_engine(self.spec, config, repeats=repeats)
        self.requests: dict[RequestId, Request] = {}
        self.alone: dict[RequestId, Stream] = {}
        self.aborted: set[RequestId] = set()
        self.failed: set[RequestId] = set()

    @rule(
        prefix=st.sampled_from([0, 1]),
        num_shared=st.integers(0, 33),
        tail=st.lists(st.integers(0, VOCABULARY - 1), max_size=12),
        max_tokens=st.integers(1, 25),
        min_tokens=st.integers(0, 5),
        stop=st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
        num_prior=st.integers(0, 3),
        patience=st.none() | st.floats(0.0, 3.0),
        priority=st.sampled_from(PriorityClass),
        tenant=st.sampled_from(["a", "b"]),
        sampling=st.sampled_from([GREEDY, SamplingParams(seed=3, logprobs=2)]),
    )
    def submit(
        self,
        prefix: int,
        num_shared: int,
        tail: list[int],
        max_tokens: int,
        min_tokens: int,
        stop: list[int],
        num_prior: int,
        patience: float | None,
        priority: PriorityClass,
        tenant: str,
        sampling: SamplingParams,
    ):
        prompt = (*PREFIXES[prefix][:num_shared], *tail) or (1,)
        request = Request(
            id=RequestId(f"r{len(self.requests)}"),
            prompt=prompt,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop_token_ids=tuple(stop),
            sampling=sampling,
            num_prior=min(num_prior, len(prompt) - 1),
            deadline=None if patience is None else self.engine.now + patience,
            priority=priority,
            tenant=tenant,
        )
        self.requests[request.id] = request
        self.alone[request.id] = undisturbed(request, self.spec, repeats=self.repeats)
        self.engine.submit(request)
        if request.id not in self.engine.finishes.keys() | self.engine.rejects.keys():
            self.engine.feed(Submit(request))  # M6: a message may come twice
        context = min(60, self.spec.num_blocks * self.spec.block_size)
        if len(prompt) >= context:
            assert self.engine.rejects[request.id].code == ContextLengthExceeded.code
        elif request.id in self.engine.rejects and request.deadline is not None:
            assert self.engine.rejects[request.id].code == DeadlineInfeasible.code
        elif request.id in self.engine.rejects:
            raise AssertionError(f"{self.engine.rejects[request.id]}")

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject):
        request_id = data.draw(st.sampled_from(list(self.requests)))
        self.aborted.add(request_id)
        self.engine.abort(request_id)
        was_planned = len(self.engine.plans)
        sequences = {s.request.id for s in self.engine.core.scheduler.running}
        assert request_id not in sequences
        assert len(self.engine.plans) == was_planned

    @precondition(lambda self: self.engine.num_in_flight)
    @rule()
    def finish_step(self):
        self.engine.finish_step()

    @precondition(lambda self: self.engine.num_in_flight)
    @rule()
    def fail_step(self):
        before = set(self.engine.finishes)
        self.engine.finish_step(failed="the device stumbled")
        self.failed |= set(self.engine.finishes) - before

    @rule(seconds=st.floats(0.0, 0.2))
    def wait(self, seconds: float):
        wakeup = self.engine.core.next_wakeup()
        until = self.engine.now + seconds
        while wakeup is not None and wakeup <= until:
            self.engine.now = wakeup
            self.engine.feed(Tick())
            wakeup = self.engine.core.next_wakeup()
        self.engine.now = until

    @rule()
    def tick_out_of_turn(self):
        self.engine.feed(Tick())

    @invariant()
    def every_stream_is_what_it_would_be_alone(self):
        if not hasattr(self, "engine"):
            return
        for request_id, tokens in self.engine.tokens.items():
            request, alone = self.requests[request_id], self.alone[request_id]
            assert tuple(tokens) == alone.tokens[: len(tokens)]
            finish = self.engine.finishes.get(request_id)
            if finish in ENDED_BY_ITSELF:
                assert (tuple(tokens), finish) == (alone.tokens, alone.finish)
            if finish is FinishReason.ABORT:
                assert request_id in self.aborted
            if finish is FinishReason.ERROR:
                assert request_id in self.failed
            if finish is FinishReason.DEADLINE:
                assert request.deadline is not None
                assert request.deadline <= self.engine.now

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        self.engine.run_until_idle()
        self.every_stream_is_what_it_would_be_alone()
        ended = self.engine.finishes.keys() | self.engine.rejects.keys()
        assert ended == self.requests.keys()
        counts = self.engine.core.scheduler.kv.counts()
        assert counts.free == counts.total
        self.the_last_report_adds_up()

    def the_last_report_adds_up(self):
        if not self.engine.plans:
            return
        report = self.engine.reports[-1]
        emitted = sum(map(len, self.engine.tokens.values()))
        assert (report.running, report.waiting, report.waiting_tokens) == (0, 0, 0)
        assert report.kv_blocks_free == report.kv_blocks_total
        assert report.output_tokens_total == emitted
        assert 0 <= report.accepted_drafts_total <= report.draft_tokens_total
        assert report.step == len(self.engine.plans)


EngineStates.TestCase.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestEngineStates = EngineStates.TestCase


@pytest.mark.heavy
@pytest.mark.timeout(600)
class TestManyEngineStates(EngineStates.TestCase):
    settings = settings(max_examples=2000, stateful_step_count=100, deadline=None)
