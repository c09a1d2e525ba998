"""Property: whatever happens in whatever order, every accepted request ends exactly once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from headrace.core.router.events import (
    CancelAt,
    ClientGone,
    Deliver,
    Dispatch,
    Drain,
    Drained,
    Fail,
    Outputs,
    RejectedByReplica,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
    RouterEvent,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.core.scheduler.events import Output
from headrace.machine import Tick
from headrace.types import FinishReason, ReplicaId, Request, RequestId

REPLICAS = [ReplicaId(f"r{index}") for index in range(3)]


class RouterStates(RuleBasedStateMachine):
    """Holds beside the router who waits, who is where, and who has ended how."""

    @initialize(waiting=st.integers(1, 6), outstanding=st.integers(1, 4), wait=st.floats(0.5, 20.0))
    def start(self, waiting: int, outstanding: int, wait: float) -> None:
        self.limits = RouterLimits(
            max_waiting=waiting, max_outstanding=outstanding, max_wait=wait, deadline_grace=1.0
        )
        self.router = Router(self.limits)
        self.now = 0.0
        self.num_requests = 0
        self.arrived_at: dict[RequestId, float] = {}
        self.deadlines: dict[RequestId, float | None] = {}
        self.place: dict[RequestId, ReplicaId | None] = {}  # of those alive
        self.group: dict[RequestId, RequestId] = {}
        self.ready: set[ReplicaId] = set()
        self.drained = 0

    def feed(self, event: RouterEvent) -> None:
        before = list(self.place)
        effects = self.router.handle(event, self.now)
        self.router.check_integrity()
        wakeup = self.router.next_wakeup()
        assert wakeup is None or wakeup > self.now, "M3"
        dispatched = [e.request.id for e in effects if isinstance(e, Dispatch)]
        waited = [name for name in before if name in dispatched]
        assert waited == sorted(waited, key=lambda name: self.arrived_at[name]), "out of order"
        for effect in effects:
            match effect:
                case Dispatch(replica, request):
                    assert replica in self.ready
                    assert self.place[request.id] is None, "sent twice"
                    self.place[request.id] = replica
                case CancelAt(replica, request_id):
                    assert replica in self.ready
                    assert self.place.get(request_id, replica) == replica
                case Deliver(outputs):
                    for output in outputs:
                        assert isinstance(event, Outputs)
                        assert self.place[output.request_id] == event.replica, "not its replica"
                        if output.finish is not None:
                            del self.place[output.request_id]
                case Fail(request_id):
                    del self.place[request_id]  # KeyError: it ended twice
                case Drained():
                    self.drained += 1
                    assert self.drained == 1

    @rule(size=st.integers(1, 3), life=st.none() | st.floats(0.0, 30.0))
    def arrive(self, size: int, life: float | None) -> None:
        deadline = None if life is None else self.now + life
        requests = tuple(
            Request(
                id=RequestId(f"{self.num_requests}#{choice}"),
                prompt=(1,),
                max_tokens=1,
                deadline=deadline,
            )
            for choice in range(size)
        )
        self.num_requests += 1
        for request in requests:
            self.place[request.id] = None
            self.arrived_at[request.id] = self.now
            self.deadlines[request.id] = deadline
        self.feed(RequestArrived(requests))

    @rule(replica=st.sampled_from(REPLICAS))
    def become_ready(self, replica: ReplicaId) -> None:
        self.ready.add(replica)
        self.feed(ReplicaReady(replica))

    @rule(replica=st.sampled_from(REPLICAS))
    def be_lost(self, replica: ReplicaId) -> None:
        self.ready.discard(replica)
        self.feed(ReplicaLost(replica, "test"))
        assert replica not in self.place.values(), "a request of a lost replica lives on"

    @precondition(lambda self: self.place)
    @rule(data=st.data(), finish=st.booleans(), liar=st.booleans())
    def emit(self, data: st.DataObject, finish: bool, liar: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.place)))
        replica = self.place[name]
        if liar or replica is None:  # from a replica that does not have it, or no longer
            replica = data.draw(st.sampled_from(REPLICAS))
        reason = FinishReason.STOP if finish else None
        self.feed(Outputs(replica, (Output(name, (1,), reason, 0),)))

    @precondition(lambda self: self.place)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        names = tuple(data.draw(st.lists(st.sampled_from(sorted(self.place)), min_size=1)))
        self.feed(ClientGone(names))
        for name in set(names):
            del self.place[name]

    @precondition(lambda self: self.place)
    @rule(data=st.data(), replica=st.sampled_from(REPLICAS))
    def reject(self, data: st.DataObject, replica: ReplicaId) -> None:
        name = data.draw(st.sampled_from(sorted(self.place)))
        self.feed(RejectedByReplica(replica, name, "overloaded", "test"))

    @rule(seconds=st.floats(0.0, 15.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick())

    @rule()
    def wait_as_asked(self) -> None:
        wakeup = self.router.next_wakeup()
        if wakeup is not None:
            self.now = wakeup
            self.feed(Tick())

    @precondition(lambda self: not self.router.draining)
    @rule(limit=st.floats(0.0, 20.0))
    def drain(self, limit: float) -> None:
        self.feed(Drain(limit))

    @invariant()
    def the_router_knows_the_same_requests(self) -> None:
        if self.num_requests:
            assert self.router.num_alive == len(self.place)

    @invariant()
    def nobody_waits_too_long_or_without_need(self) -> None:
        if not self.num_requests:
            return
        waiting = [name for name, place in self.place.items() if place is None]
        assert self.router.num_waiting == len(waiting) <= self.limits.max_waiting
        for name in waiting:
            assert self.now < self.arrived_at[name] + self.limits.max_wait
            deadline = self.deadlines[name]
            assert deadline is None or self.now < deadline
        if waiting:
            for view in self.router.replicas:
                assert view.outstanding >= self.limits.max_outstanding

    @invariant()
    def a_drain_ends(self) -> None:
        if self.num_requests and self.router.draining and not self.place:
            assert self.drained == 1

    def teardown(self) -> None:
        if not self.num_requests:
            return
        self.feed(Drain(5.0))
        self.now += 5.0
        self.feed(Tick())
        assert not self.place, "accepted and never ended"


TestRouterStates = RouterStates.TestCase
TestRouterStates.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
