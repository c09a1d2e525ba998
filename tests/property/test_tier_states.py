"""EngineCore with a lower tier and a neighbour, under whatever may happen to transfers.

The executor's blocks are the oracle: a row whose context is not its own prefix is an error, blocks
to be loaded hold rubbish until the load has ended, and saves read at the last moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.kvcache.tiers import TierConfig
from headrace.core.kvcache.transfers import Tier, TierChanged
from headrace.core.scheduler.config import SchedulerConfig
from headrace.machine import Tick
from headrace.testing.engines import (
    GREEDY,
    Stream,
    cached_content,
    simulated_engine,
    simulated_spec,
    undisturbed,
)
from headrace.types import FinishReason, KvSource, ReplicaId, Request, RequestId

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

VOCABULARY = 50
PREFIXES = [[p] * 3 + list(range(p, p + 40)) for p in (3, 4, 5)]


def lent(block_size: int) -> dict[bytes, npt.NDArray[np.uint8]]:
    """What a neighbour holds that computed all prefixes."""
    spec = simulated_spec(
        num_blocks=96, block_size=block_size, max_model_len=60, vocab_size=VOCABULARY
    )
    neighbour = simulated_engine(spec)
    for prefix in PREFIXES:
        name = RequestId(f"{prefix[0]}")
        neighbour.submit(Request(id=name, prompt=(*prefix,), max_tokens=2, sampling=GREEDY))
    neighbour.run_until_idle()
    return cached_content(neighbour)


class TierStates(RuleBasedStateMachine):
    """Transfers end in any order, early, with a part, with nothing, or not for a long time."""

    @initialize(
        num_blocks=st.sampled_from([6, 12, 24, 32, 48]),
        block_size=st.sampled_from([2, 4]),
        budget=st.sampled_from([4, 9, 64]),
        depth=st.sampled_from([1, 2]),
        transfer_blocks=st.sampled_from([1, 3, 8]),
        outlives=st.booleans(),
        slice_blocks=st.sampled_from([1, 1024]),
        kinds=st.sampled_from([(Tier.HOST,), (Tier.PEER,), (Tier.HOST, Tier.PEER)]),
    )
    def build(
        self,
        num_blocks: int,
        block_size: int,
        budget: int,
        depth: int,
        transfer_blocks: int,
        outlives: bool,
        slice_blocks: int,
        kinds: tuple[Tier, ...],
    ):
        self.spec = simulated_spec(
            num_blocks=num_blocks, block_size=block_size, max_model_len=60, vocab_size=VOCABULARY
        )
        config = SchedulerConfig(
            max_num_seqs=4,
            max_num_batched_tokens=budget,
            max_steps_in_flight=depth,
            slice_blocks=slice_blocks,
        )
        tiers = TierConfig(
            transfer_blocks=transfer_blocks,
            block_seconds=dict.fromkeys(kinds, 1e-5),
            outlives=outlives,
        )
        self.engine = simulated_engine(self.spec, config, tiers=tiers)
        self.engine.store.lent = lent(block_size)
        self.requests: dict[RequestId, Request] = {}
        self.alone: dict[RequestId, Stream] = {}
        self.failed: set[RequestId] = set()
        self.untold: list[TierChanged] = []

    @rule(
        prefix=st.sampled_from([0, 1, 2]),
        num_shared=st.integers(0, 43),
        tail=st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
        max_tokens=st.integers(1, 15),
        believed=st.integers(0, 30),
    )
    def submit(self, prefix: int, num_shared: int, tail: list[int], max_tokens: int, believed: int):
        prompt = (*PREFIXES[prefix][:num_shared], *tail) or (1,)
        request = Request(
            id=RequestId(f"r{len(self.requests)}"),
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=GREEDY,
            source=KvSource(ReplicaId("r1"), "r1.kv", believed) if believed else None,
        )
        self.requests[request.id] = request
        self.alone[request.id] = undisturbed(request, self.spec)
        self.engine.submit(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject):
        self.engine.abort(data.draw(st.sampled_from(list(self.requests))))

    @precondition(lambda self: self.engine.num_in_flight)
    @rule(times=st.integers(1, 6))
    def finish_steps(self, times: int):
        for _ in range(min(times, self.engine.num_in_flight)):
            self.engine.finish_step()

    @precondition(lambda self: self.engine.num_in_flight)
    @rule()
    def fail_step(self):
        before = set(self.engine.finishes)
        self.engine.finish_step(failed="the device stumbled")
        self.failed |= set(self.engine.finishes) - before

    @precondition(lambda self: self.engine.store.pending)
    @rule(data=st.data())
    def finish_transfer(self, data: st.DataObject):
        index = data.draw(st.integers(0, len(self.engine.store.pending) - 1))
        self.engine.finish_transfer(index)

    @precondition(lambda self: self.engine.store.pending)
    @rule(limit=st.integers(0, 3))
    def finish_part_of_the_most_urgent_transfer(self, limit: int):
        urgencies = [transfer.direction for transfer in self.engine.store.pending]
        self.engine.finish_transfer(urgencies.index(min(urgencies)), limit=limit)

    @rule(prefix=st.sampled_from([0, 1, 2]))
    def come_back(self, prefix: int):
        self.submit(prefix, 43, [len(self.requests) % VOCABULARY], 2, believed=9)

    @precondition(lambda self: self.engine.store.lent)
    @rule(data=st.data())
    def the_neighbour_loses(self, data: st.DataObject):
        del self.engine.store.lent[data.draw(st.sampled_from(sorted(self.engine.store.lent)))]

    @precondition(lambda self: self.engine.store.contents)
    @rule(data=st.data(), at_once=st.booleans())
    def lose(self, data: st.DataObject, at_once: bool):
        digests = sorted(self.engine.store.contents)
        self.untold.append(self.engine.store.lose(data.draw(st.sampled_from(digests))))
        if at_once:
            self.tell()

    @rule()
    def tell(self):
        while self.untold:
            self.engine.feed(self.untold.pop())

    @rule(seconds=st.floats(0.0, 0.5))
    def wait(self, seconds: float):
        wakeup = self.engine.core.next_wakeup()
        until = self.engine.now + seconds
        while wakeup is not None and wakeup <= until:
            self.engine.now = wakeup
            self.engine.feed(Tick())
            wakeup = self.engine.core.next_wakeup()
        self.engine.now = until

    @precondition(lambda self: self.engine.store.pending)
    @rule()
    def hang(self):
        self.wait(2.0)

    @invariant()
    def every_stream_is_what_it_would_be_alone(self):
        if not hasattr(self, "engine"):
            return
        for request_id, tokens in self.engine.tokens.items():
            alone = self.alone[request_id]
            assert tuple(tokens) == alone.tokens[: len(tokens)]
            finish = self.engine.finishes.get(request_id)
            if finish in (FinishReason.STOP, FinishReason.LENGTH):
                assert (tuple(tokens), finish) == (alone.tokens, alone.finish)
            if finish is FinishReason.ERROR:
                assert request_id in self.failed

    @invariant()
    def transfers_are_bounded(self):
        if hasattr(self, "engine"):
            assert len(self.engine.store.pending) <= 3  # two loads and a save

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        self.engine.run_until_idle()
        self.every_stream_is_what_it_would_be_alone()
        ended = self.engine.finishes.keys() | self.engine.rejects.keys()
        assert ended == self.requests.keys()
        counts = self.engine.core.scheduler.kv.counts()
        assert counts.free == counts.total


TierStates.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestTierStates = TierStates.TestCase


@pytest.mark.heavy
@pytest.mark.timeout(600)
class TestManyTierStates(TierStates.TestCase):
    settings = settings(max_examples=1500, stateful_step_count=100, deadline=None)
