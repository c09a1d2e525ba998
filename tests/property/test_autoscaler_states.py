"""Whatever happens in whatever order: the range is kept, and load decides once per cooldown."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.autoscaler.config import AutoscalerConfig
from headrace.core.autoscaler.events import (
    AutoscalerEvent,
    BeginDrain,
    DrainAsked,
    DrainCancelled,
    EndDrain,
    PoolLoad,
    RangeAsked,
    ReplicaDown,
    ReplicaEmpty,
    ReplicaLoad,
    ReplicaUp,
    Scaled,
    Stage,
    StartReplica,
    StopReplica,
)
from headrace.core.autoscaler.machine import Autoscaler
from headrace.machine import Tick
from headrace.types import ReplicaId

CONFIG = AutoscalerConfig(
    short_window=1, long_window=4, scale_out_after=1, scale_in_after=4, cooldown=8, drain_limit=20
)


class AutoscalerStates(RuleBasedStateMachine):
    """A model of what is really there beside the machine's own view."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Autoscaler(CONFIG)
        self.now = 0.0
        self.names: set[ReplicaId] = set()
        self.there: dict[ReplicaId, str] = {}  # starting, up, dead
        self.draining: set[ReplicaId] = set()
        self.stopping: set[ReplicaId] = set()
        self.by_load: list[float] = []
        self.range = (0, 0)

    def feed(self, event: AutoscalerEvent) -> None:
        effects = self.machine.handle(event, self.now)
        self.machine.check_integrity()
        wakeup = self.machine.next_wakeup()
        assert wakeup is None or wakeup > self.now
        changes = [effect for effect in effects if isinstance(effect, Scaled)]
        assert effects[: len(changes)] == changes  # before what they cause
        assert len(changes) <= 1
        if changes and ("needs" in changes[0].reason or "loaded" in changes[0].reason):
            self.by_load.append(self.now)
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: object) -> None:
        match effect:
            case StartReplica(name):
                assert name not in self.names  # never used again
                self.names.add(name)
                self.there[name] = "starting"
            case BeginDrain(name):
                assert self.there[name] == "up"
                assert name not in self.draining | self.stopping
                self.draining.add(name)
            case EndDrain(name):
                self.draining.remove(name)
            case StopReplica(name):
                assert name in self.there
                assert name not in self.stopping
                # nobody who serves is stopped without a drain
                assert name in self.draining or self.there[name] != "up"
                self.draining.discard(name)
                self.stopping.add(name)

    def pick(self, data: st.DataObject, *states: str) -> ReplicaId:
        names = [name for name, state in self.there.items() if state in states]
        return data.draw(st.sampled_from([*names, ReplicaId("r999")]))

    @initialize(floor=st.integers(1, 4), more=st.integers(0, 4))
    def begin(self, floor: int, more: int) -> None:
        self.scale(floor, more)

    @rule(floor=st.integers(1, 4), more=st.integers(0, 4))
    def scale(self, floor: int, more: int) -> None:
        self.range = (floor, floor + more)
        self.feed(RangeAsked(*self.range))

    @rule(seconds=st.floats(0.1, 30), waits=st.booleans())
    def wait(self, seconds: float, waits: bool) -> None:
        wakeup = self.machine.next_wakeup()
        self.now += seconds
        if wakeup is not None and wakeup <= self.now:
            self.feed(Tick())

    @rule(data=st.data())
    def becomes_ready(self, data: st.DataObject) -> None:
        name = self.pick(data, "starting", "dead")
        if name in self.there:
            self.there[name] = "up"
        self.feed(ReplicaUp(name, 3.0))

    @rule(data=st.data())
    def dies_and_comes_again(self, data: st.DataObject) -> None:
        name = self.pick(data, "starting", "up")
        if name not in self.stopping:
            if name in self.there:
                self.there[name] = "dead"
            self.feed(ReplicaDown(name, restarts=True))

    @rule(data=st.data())
    def is_gone(self, data: st.DataObject) -> None:
        name = self.pick(data, "starting", "up", "dead")
        self.there.pop(name, None)
        self.draining.discard(name)
        self.stopping.discard(name)
        self.feed(ReplicaDown(name, restarts=False))

    @precondition(lambda self: self.draining)
    @rule(data=st.data())
    def is_empty(self, data: st.DataObject) -> None:
        self.feed(ReplicaEmpty(data.draw(st.sampled_from(sorted(self.draining)))))

    @rule(data=st.data(), cancel=st.booleans())
    def operator_drains(self, data: st.DataObject, cancel: bool) -> None:
        name = self.pick(data, "starting", "up", "dead")
        self.feed(DrainCancelled(name) if cancel else DrainAsked(name))

    @rule(times=st.integers(1, 40), tokens=st.sampled_from([0, 500, 2000, 9000]))
    def load(self, times: int, tokens: int) -> None:
        for _ in range(times):
            self.now += 0.25
            self.wait(0.01, waits=False)
            up = [name for name, state in self.there.items() if state == "up"]
            self.feed(
                PoolLoad(
                    waiting=0,
                    waiting_tokens=0,
                    predicted_ttft=None,
                    replicas=tuple(
                        ReplicaLoad(
                            replica=name,
                            outstanding=50 if tokens else 0,
                            prefill_tokens=tokens // len(up),
                            kv_used=0.0,
                            prefill_rate=1000.0,
                        )
                        for name in up
                    ),
                )
            )

    @invariant()
    def load_decides_once_per_cooldown(self) -> None:
        pairs = zip(self.by_load, self.by_load[1:], strict=False)
        assert all(later - earlier >= CONFIG.cooldown for earlier, later in pairs)

    @invariant()
    def both_views_agree(self) -> None:
        stages = {name: stage for name, (stage, _) in self.machine.stages().items()}
        assert set(stages) == set(self.there)
        assert {n for n, stage in stages.items() if stage is Stage.DRAINING} == self.draining
        assert {n for n, stage in stages.items() if stage is Stage.STOPPING} == self.stopping


TestAutoscalerStates = AutoscalerStates.TestCase
TestAutoscalerStates.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
