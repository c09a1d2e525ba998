"""An engine through very many random events in a row: nothing leaks, nothing stalls, all end.

test_engine_states.py compares every token in short runs; here the runs are long and the memory is
tiny, and what is looked at is that the engine goes on.
"""

from __future__ import annotations

import random

import pytest

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.events import Submit
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.preemption import Preemption
from headrace.machine import Tick
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec
from headrace.types import PriorityClass, Request, RequestId

VOCABULARY = 60
MAX_LIVE = 40


class Marathon:
    """Random requests, aborts, failures, deadlines and steps; everything follows from ``seed``."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        choose = self.random.choice
        spec = simulated_spec(
            num_blocks=choose([4, 9, 24]),
            block_size=choose([2, 4, 8]),
            max_model_len=70,
            vocab_size=VOCABULARY,
        )
        config = SchedulerConfig(
            max_num_seqs=choose([2, 8]),
            max_num_batched_tokens=choose([8, 16, 64]),
            max_steps_in_flight=choose([1, 2]),
            max_passes=choose([0, 16]),
            order=choose(list(Order)),
            preemption=choose(list(Preemption)),
            itl=choose([None, 0.002, 0.02]),
            batch_itl=choose([None, 0.01]),
            audit_steps=choose([1, 64]),
            max_setbacks=choose([0, 1, 3]),
            slice_blocks=choose([1, 2, 512]),
        )
        self.engine = simulated_engine(spec, config)
        self.prefixes = [[self.random.randrange(VOCABULARY) for _ in range(60)] for _ in range(3)]
        self.requests: list[RequestId] = []
        self.live: list[RequestId] = []

    def run(self, num_events: int) -> None:
        """Let so many events happen, and then everything end."""
        engine = self.engine
        for count in range(num_events):
            self._event()
            if count % 200 == 0:
                self._forget()
        engine.run_until_idle()
        assert not engine.incidents
        assert {*self.requests} == {*engine.finishes, *engine.rejects}
        counts = engine.core.scheduler.kv.counts()
        assert counts.free == counts.total

    def _event(self) -> None:
        engine, draw = self.engine, self.random.random()
        if draw < 0.25 and len(self.live) < MAX_LIVE:
            self._submit()
        elif draw < 0.30 and self.live:
            engine.abort(self.random.choice(self.live))
        elif draw < 0.32:
            self._wait(self.random.uniform(0.0, 0.3))
        elif engine.num_in_flight:
            engine.finish_step(failed="the device stumbled" if draw > 0.995 else "")
        self.live = [name for name in self.live if name not in engine.finishes]

    def _submit(self) -> None:
        pick = self.random
        length = pick.randrange(0, 60)
        prompt = pick.choice(self.prefixes)[:length]
        prompt = prompt + [pick.randrange(VOCABULARY) for _ in range(pick.randrange(1, 8))]
        soon = self.engine.now + pick.uniform(0.0, 1.0)
        request = Request(
            id=RequestId(f"r{len(self.requests)}"),
            prompt=tuple(prompt),
            max_tokens=pick.randrange(1, 40),
            sampling=GREEDY,
            stop_token_ids=(pick.randrange(VOCABULARY),),
            deadline=soon + 1 if pick.random() < 0.2 else None,
            first_token_by=soon if pick.random() < 0.1 else None,
            itl=pick.choice([None, None, 0.005]),
            priority=pick.choice(list(PriorityClass)),
            tenant=pick.choice("abc"),
            weight=pick.choice([1.0, 3.0]),
        )
        self.requests.append(request.id)
        self.engine.feed(Submit(request))
        if request.id not in self.engine.rejects:
            self.live.append(request.id)

    def _wait(self, seconds: float) -> None:
        engine, until = self.engine, self.engine.now + seconds
        while (wakeup := engine.core.next_wakeup()) is not None and wakeup <= until:
            engine.now = wakeup
            engine.feed(Tick())
        engine.now = until

    def _forget(self) -> None:
        """Keep the harness small: what has ended was checked."""
        assert not self.engine.incidents
        self.engine.journal.entries.clear()
        self.engine.outputs.clear()


@pytest.mark.parametrize("seed", range(6))
def test_a_thousand_events_leave_nothing_behind(seed: int):
    Marathon(seed).run(1000)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 140))
def test_a_million_events_leave_nothing_behind(seed: int):
    Marathon(seed).run(25_000)
